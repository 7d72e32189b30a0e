"""The XML of one image in Pascal VOC's form: parsed without what could unfold, and its boxes."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from ....plain_numbers import decimal
from .foreign_exports import explain_xml

_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)["']""")
# Encodings that programs for labels write; some others take time without end to decode.
_ENCODINGS = re.compile(
    r"utf-?8|utf-?16|(us-)?ascii|latin-?1|iso-?8859-\d+|(windows-|cp)12\d\d|gb\w+|big5|shift_jis"
    r"|euc-\w+|koi8-r",
    re.IGNORECASE,
)
MAX_DEPTH = 50
# Of one image; an object has some ten.
MAX_ELEMENTS = 500_000
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def annotation_of(content: bytes) -> ElementTree.Element:
    """The outermost element of an annotation.

    Raises:
        ValueError: it is no XML of VOC; the message says why.
    """
    root = _parse(content)
    if root.tag != "annotation":
        raise ValueError(
            f"its outermost element is <{root.tag:.99}>, not <annotation>{explain_xml(root.tag)}"
        )
    return root


def object_of(node: ElementTree.Element) -> tuple[str, list[float]]:
    """Name and corners of an object.

    Raises:
        ValueError: it has none; the message says which.
    """
    name, boxes = (node.findtext("name") or "").strip(), node.findall("bndbox")
    if not name:
        raise ValueError("it has no <name>")
    if len(boxes) != 1:
        raise ValueError(f"it has {len(boxes)} elements <bndbox>, not one")
    return name, [_number(boxes[0], side) for side in CORNERS]


def _parse(content: bytes) -> ElementTree.Element:
    """Parse XML without a DTD, and so without entities, in the encoding that it declares.

    Raises:
        ValueError: it is no such XML.
    """
    declared = _DECLARED.match(content)
    utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    encoding = (
        "utf-16" if utf_16 else declared[1].decode("ascii", "replace") if declared else "utf-8"
    )
    if not _ENCODINGS.fullmatch(encoding):
        raise ValueError(f"its encoding {encoding!r:.99} is not known")
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except (LookupError, UnicodeError) as error:
        raise ValueError(f"it is not text in {encoding} ({error})") from error
    # The parser is given text, so that no encoding can hide it.
    if "<!DOCTYPE" in text:
        raise ValueError("it declares a document type (<!DOCTYPE), which could make it unfold")
    try:
        return ElementTree.fromstring(text, ElementTree.XMLParser(target=_Shallow()))
    except ElementTree.ParseError as error:
        raise ValueError(f"it is not XML ({error})") from error


class _Shallow(ElementTree.TreeBuilder):
    """Builds a tree of bounded depth and number of elements."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = self._count = 0

    def start(self, tag: str, attrs: dict[str, str]) -> ElementTree.Element:
        self._depth, self._count = self._depth + 1, self._count + 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        if self._count > MAX_ELEMENTS:
            raise ValueError(f"it has more than {MAX_ELEMENTS} elements")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def _number(box: ElementTree.Element, side: str) -> float:
    text = (box.findtext(side) or "").strip(" \t\r\n")
    try:
        return decimal(text)
    except ValueError as error:
        raise ValueError(f"its <{side}>: {error}") from None


def box_of(xmin: float, ymin: float, xmax: float, ymax: float) -> list[float]:
    """COCO's (x, y, width, height)."""
    if all(
        not math.isfinite(corner) or corner == int(corner) for corner in (xmin, ymin, xmax, ymax)
    ):
        xmin, ymin = (corner - 1 if corner >= 1 else corner for corner in (xmin, ymin))
    return [xmin, ymin, xmax - xmin, ymax - ymin]

"""Pascal VOC: an XML file for each image.

Its corners are numbers of pixels, counted from 1, and the last pixel belongs to the object
(Everingham et al., IJCV 2010, and detectron2's own reader). Pixel n covers n - 1 to n in the
coordinates of this project, so (xmin, xmax) becomes x = xmin - 1, width = xmax - xmin + 1. Many
programs write what begins at 0 instead. Where that shows, it is taken so: a corner of 0 stays at 0,
and a box with a fraction among its corners is taken as coordinates, not as pixels.
"""

from __future__ import annotations

import functools
import math
import os
import re
from xml.etree import ElementTree

from ..image_folder import ImageFolder
from ..image_headers import image_size
from .foreign_files import find_entry, list_files, list_images, read_text
from .source import Candidate, Finding, Source, SourceError, split_of

_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)["']""")
# Encodings that programs for labels write; some others take time without end to decode.
_ENCODINGS = re.compile(
    r"utf-?8|utf-?16|(us-)?ascii|latin-?1|iso-?8859-\d+|(windows-|cp)12\d\d|gb\w+|big5|shift_jis"
    r"|euc-\w+|koi8-r",
    re.IGNORECASE,
)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find(folder: str) -> list[Candidate]:
    """The XML files of a folder: in ``Annotations/``, by split where ``ImageSets/Main/`` says so,
    or beside their images.
    """
    inner = find_entry(folder, "annotations")
    if inner and os.path.isdir(inner) and list_files(inner, ".xml"):
        images = find_entry(folder, "jpegimages") or find_entry(folder, "images") or folder
        lists = os.path.join(folder, "ImageSets", "Main")
        name = os.path.basename(inner)
        splits = _split_lists(lists) if os.path.isdir(lists) else {}
        if not splits:
            return [Candidate("voc", None, name, functools.partial(read, inner, images))]
        return [
            Candidate(
                "voc",
                split_of(file),
                f"ImageSets/Main/{file}",
                functools.partial(read, inner, images, os.path.join(lists, file)),
            )
            for file in splits
        ]
    if list_files(folder, ".xml"):
        return [Candidate("voc", None, "*.xml", functools.partial(read, folder, folder))]
    return []


def _split_lists(folder: str) -> list[str]:
    """Lists of all images of a split; "cat_train.txt" is one of a class."""
    names = (*("train", "val", "valid", "validation", "test"),)
    return [x for x in list_files(folder, ".txt") if os.path.splitext(x)[0].lower() in names]


def read(annotations: str, images: str, split_list: str | None = None) -> Source:
    """Read a folder of XML files.

    Objects that are marked as difficult are objects as all others. A file without objects is of an
    image without objects; an image without a file is left out, as nobody has said what it shows.

    Args:
        annotations: the folder of the XML files.
        images: the folder of the images.
        split_list: text file with a name, without its ending, in each line; else all are read.

    Raises:
        SourceError: the list cannot be read.
    """
    reader = _Reader(ImageFolder(annotations), ImageFolder(images))
    names = list_files(annotations, ".xml")
    if split_list is not None:
        names = reader.listed(split_list, names)
    for name in names:
        reader.read(name)
    return reader.source(left_out=None if split_list else set(list_images(images)))


class _Reader:
    def __init__(self, annotations: ImageFolder, images: ImageFolder) -> None:
        self._annotations = annotations
        self._images = images
        self._by_stem: dict[str, list[str]] = {}
        for name in list_images(images.root):
            self._by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
        self._data: dict[str, list] = {"images": [], "annotations": [], "categories": []}
        self._places: dict[int, str] = {}
        self._findings: list[Finding] = []
        self._of_name: dict[str, str] = {}
        self._difficult = self._from_zero = 0

    def listed(self, split_list: str, there: list[str]) -> list[str]:
        """File names of a split's list, those that are missing being found."""
        try:
            folder = ImageFolder(os.path.dirname(split_list))
            text = read_text(folder, os.path.basename(split_list)).decode("utf-8-sig")
        except (ValueError, OSError) as error:
            raise SourceError(f"'{split_list}' cannot be read: {error}.") from error
        names = [f"{line.split()[0]}.xml" for line in text.splitlines() if line.strip()]
        known = set(there)
        for name in names:
            if name not in known:
                remedy = f"Add the file to {self._annotations.root}, or remove the line."
                self._find("listed file is missing", split_list, name, remedy)
        return [name for name in dict.fromkeys(names) if name in known]

    def read(self, name: str) -> None:
        """Read one XML file."""
        place = self._place(name)
        try:
            root = _parse(read_text(self._annotations, name))
            if root.tag != "annotation":
                raise ValueError(f"its outermost element is <{root.tag:.99}>, not <annotation>")
        except (ValueError, OSError) as error:
            remedy = "Mend the file, or remove it together with its image."
            self._find("unreadable annotation file", place, str(error), remedy)
            return
        file_name = self._file_name(name, root)
        image = {"id": len(self._data["images"]) + 1, "file_name": file_name}
        try:
            image["width"], image["height"] = self._size(file_name, root)
        except (ValueError, OSError) as error:
            remedy = "Mend the image, or remove it together with its XML file."
            self._find("unreadable image", f"{self._images.root}/{file_name}", str(error), remedy)
            return
        if file_name in self._of_name:
            remedy = f"'{self._of_name[file_name]}' is of the same image: remove one of them."
            self._find("image with two annotation files", place, file_name, remedy)
            return
        self._of_name[file_name] = name
        self._data["images"].append(image)
        for number, node in enumerate(root.findall("object"), 1):
            self._object(node, image, f"{place}, object {number}")

    def _object(self, node: ElementTree.Element, image: dict, place: str) -> None:
        name = (node.findtext("name") or "").strip()
        boxes = node.findall("bndbox")
        try:
            if not name:
                raise ValueError("it has no <name>")
            if len(boxes) != 1:
                raise ValueError(f"it has {len(boxes)} elements <bndbox>, not one")
            corners = [_number(boxes[0], side) for side in _CORNERS]
        except ValueError as error:
            remedy = "Give it a <name>, and a <bndbox> of xmin, ymin, xmax and ymax in pixels."
            self._find("unreadable object", place, str(error), remedy)
            return
        self._difficult += (node.findtext("difficult") or "").strip() == "1"
        self._from_zero += 0 in corners[:2]
        annotation = {
            "id": len(self._data["annotations"]) + 1,
            "image_id": image["id"],
            # Replaced by a number once all names are known.
            "category_id": name,
            "bbox": _box(*corners),
        }
        self._data["annotations"].append(annotation)
        self._places[annotation["id"]] = place

    def _file_name(self, name: str, root: ElementTree.Element) -> str:
        """The image that <filename> names, else that of the XML file's own name."""
        stem, place = os.path.splitext(name)[0], self._place(name)
        named = os.path.normpath((root.findtext("filename") or "").strip() or stem)
        own = self._by_stem.get(stem, [])
        others = [x for x in own if os.path.splitext(named)[0] != stem or named == stem]
        path = os.path.join(self._images.root, named)
        if self._images.holds(named) and os.path.isfile(path):
            if others:
                remedy = f"There is also '{others[0]}', which has the XML file's name: remove one."
                self._find("filename mismatch", place, named, remedy)
            return named
        if not own:
            return named if named != stem else f"{stem}.jpg"
        if len(own) > 1:
            remedy = f"There are {' and '.join(own)}: name one of them in <filename>."
            self._find("filename mismatch", place, named, remedy)
        elif named != stem:
            remedy = f"'{own[0]}', which has the XML file's own name, is taken. Correct <filename>."
            self._find("filename mismatch", place, named, remedy, "warning")
        return own[0]

    def _size(self, file_name: str, root: ElementTree.Element) -> tuple[int, int]:
        """As declared, else by the image's header."""
        sides = [(root.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
        if all(re.fullmatch(r"0*[1-9]\d{0,9}", side, re.ASCII) for side in sides):
            return int(sides[0]), int(sides[1])
        return image_size(self._images, file_name)

    def source(self, left_out: set[str] | None) -> Source:
        """All that was read; ``left_out`` are images of which some may have no file."""
        annotations = self._data["annotations"]
        names = sorted({annotation["category_id"] for annotation in annotations})
        self._data["categories"] = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
        ids = {name: i for i, name in enumerate(names, 1)}
        for annotation in annotations:
            annotation["category_id"] = ids[annotation["category_id"]]
        count = len((left_out or set()) - self._of_name.keys())
        notes = {
            "{} objects marked as difficult are objects as all others.": self._difficult,
            "{} boxes begin at 0, though VOC counts pixels from 1: whatever wrote them may count "
            "from 0. Then boxes are a pixel too large to the left and top.": self._from_zero,
            "{} images without an XML file are left out. One without objects needs a file "
            "without <object>.": count,
        }
        return Source(
            path=self._annotations.root,
            format="voc",
            annotation_file=self._annotations.root,
            image_root=self._images.root,
            data=self._data,
            places=self._places,
            findings=self._findings,
            notes=[text.format(count) for text, count in notes.items() if count],
        )

    def _place(self, name: str) -> str:
        return os.path.join(self._annotations.root, name)

    def _find(self, kind: str, file: str, value: str, remedy: str, severity: str = "error") -> None:
        self._findings.append(Finding(kind, severity, file, None, f"{value:.200}", remedy))


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
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, RecursionError) as error:
        raise ValueError(f"it is not XML ({error})") from error


def _number(box: ElementTree.Element, side: str) -> float:
    text = (box.findtext(side) or "").strip()
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"its <{side}> is {text!r:.99}, no number") from None


def _box(xmin: float, ymin: float, xmax: float, ymax: float) -> list[float]:
    """COCO's (x, y, width, height)."""
    if all(
        not math.isfinite(corner) or corner == int(corner) for corner in (xmin, ymin, xmax, ymax)
    ):
        xmin, ymin = (corner - 1 if corner >= 1 else corner for corner in (xmin, ymin))
    return [xmin, ymin, xmax - xmin, ymax - ymin]

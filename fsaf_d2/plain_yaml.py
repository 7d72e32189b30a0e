"""YAML of strangers: one reader for configs, those in checkpoints and settings of data sets."""

from __future__ import annotations

import math
import re

import yaml

from .plain_numbers import MAX_DIGITS, MAX_SIGNS
from .texts import as_line

# Of a text in bytes; whole configs have some 20,000.
MAX_YAML = 1 << 20
# Once aliases have been unfolded; a value counts as so many letters beside its own.
MAX_LETTERS = 1 << 20
OF_VALUE = 32
MAX_DEPTH = 50

_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_KINDS = {yaml.SequenceNode: _TAG + "seq", yaml.MappingNode: _TAG + "map"}
_WHOLE = {2: re.compile("0b([01]+)"), 16: re.compile("0x([0-9a-f]+)"), 8: re.compile("0([0-7]+)")}


class YamlError(ValueError):
    """A text is no YAML, or YAML of a kind that is not read; one sentence that says why."""


def plain_yaml(text: str, subject: str, *, as_texts: bool = False) -> object:
    """Read YAML of strangers: mappings, lists, texts, numbers, ``true``, ``false`` and ``null``.

    Keys are the texts that stand there. Numbers in base 60 and dates are texts, too.

    Args:
        text: one document of at most :data:`MAX_YAML` letters, in which no key stands twice.
        subject: what it is, as a message begins: ``Config file 'a.yaml'``.
        as_texts: give all values but those of the outermost mapping that are null as the texts
            that stand there.

    Raises:
        YamlError: it is not YAML, has tags, holds itself, is larger or more deeply nested than
            the constants above say, or has numbers that no computer has.
    """
    if len(text) > MAX_YAML:
        raise YamlError(f"{subject} is refused: it is longer than {MAX_YAML} letters.")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return _Values(as_texts).value(node)
    except _RefusedError as error:
        raise YamlError(f"{subject} is refused: {error}.") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets errors of Python through for escapes that are no letters.
        raise YamlError(f"{subject} is not YAML: {_problem(error)}.") from error


class _RefusedError(Exception):
    def __init__(self, reason: str, node: yaml.Node | yaml.Event) -> None:
        super().__init__(f"{reason} (line {node.start_mark.line + 1})")


class _Loader(yaml.SafeLoader):
    """Composes a document within the limits, with marks of nodes and without values."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._letters = 0
        self._of_anchor: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._of_anchor:
                reason = f"it unfolds its YAML aliases: *{event.anchor:.99} holds itself"
                raise _RefusedError(reason, event)
            self._count(self._of_anchor.get(event.anchor, 0), event)
            return super().compose_node(parent, index)
        if event.tag not in (None, "!", *_PLAIN):
            tag = event.tag.replace(_TAG, "!!", 1)
            raise _RefusedError(
                f"it is not plain YAML: the tag {tag!r:.99} could run code and is never "
                "read, remove it",
                event,
            )
        before, self._depth = self._letters, self._depth + 1
        if self._depth > MAX_DEPTH:
            raise _RefusedError(f"it is nested more than {MAX_DEPTH} deep", event)
        self._count(OF_VALUE + len(getattr(event, "value", "")), event)
        node = super().compose_node(parent, index)
        if event.anchor is not None:
            self._of_anchor[event.anchor] = self._letters - before
        self._depth -= 1
        return node

    def _count(self, letters: int, event: yaml.Event) -> None:
        self._letters += letters
        if self._letters > MAX_LETTERS:
            how = "unfolds its YAML aliases (*name) to" if self._of_anchor else "has"
            raise _RefusedError(
                f"it {how} more than {MAX_LETTERS} letters, {OF_VALUE} for each value among them",
                event,
            )


class _Values:
    """Makes values of nodes that are within the limits."""

    def __init__(self, as_texts: bool) -> None:
        self._as_texts = as_texts

    def value(self, node: yaml.Node | None) -> object:
        """The value of a whole document."""
        if self._as_texts and isinstance(node, yaml.MappingNode):
            found = self._value(node)
            nulls = {key.value for key, child in node.value if child.tag == _TAG + "null"}
            return {key: None if key in nulls else value for key, value in found.items()}
        return None if node is None else self._value(node)

    def _value(self, node: yaml.Node) -> object:
        if isinstance(node, yaml.ScalarNode):
            return node.value if self._as_texts else _scalar(node)
        if node.tag != _KINDS[type(node)]:
            raise _RefusedError(f"a list or mapping is no {_name(node)}", node)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(x) for x in node.value]
        return self._mapping(node)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, object]:
        merged: dict[str, object] = {}
        own: dict[str, object] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _RefusedError("a key is a list or a mapping, not a text", key)
            if key.tag == _TAG + "merge":
                for other in reversed(self._merged(child)):
                    merged.update(other)
            elif key.value in own:
                raise _RefusedError(f"the key {key.value!r:.99} stands twice", key)
            else:
                own[key.value] = self._value(child)
        return {**merged, **own}

    def _merged(self, node: yaml.Node) -> list[dict[str, object]]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(x, yaml.MappingNode) for x in nodes):
            raise _RefusedError("what << merges must be a mapping", node)
        return [self._mapping(x) for x in nodes]


def _scalar(node: yaml.ScalarNode) -> object:
    text, kind = node.value, _name(node)
    try:
        if kind == "null" and text.lower() in ("", "~", "null"):
            return None
        if kind == "bool":
            return yaml.SafeLoader.bool_values[text.lower()]
        if kind in ("int", "float") and ":" not in text:
            return (_whole if kind == "int" else _fraction)(text.replace("_", "").lower())
    except (KeyError, ValueError):
        kind = "null"
    if kind in ("null", "seq", "map"):
        raise _RefusedError(
            f"{text!r:.40} is no {_name(node)} that is read: write fewer digits, or put "
            "quotation marks around a text",
            node,
        )
    return text


def _whole(text: str) -> int:
    digits, base = text.lstrip("+-"), 10
    if len(digits) > MAX_DIGITS:
        raise ValueError
    for other, pattern in _WHOLE.items():
        if found := pattern.fullmatch(digits):
            digits, base = found[1], other
    return int(digits, base) * (-1 if text.startswith("-") else 1)


def _fraction(text: str) -> float:
    if len(text) > MAX_SIGNS:
        raise ValueError
    if text.lstrip("+-") in (".inf", ".nan"):
        return float(text.replace(".", ""))
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _name(node: yaml.Node) -> str:
    return node.tag.removeprefix(_TAG)


def _problem(error: Exception) -> str:
    """What PyYAML found, in a line."""
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    if not isinstance(error, yaml.YAMLError):
        return "an escape or a number in it stands for nothing"
    reasons = [getattr(error, name, None) for name in ("context", "problem", "reason")]
    said = as_line(", ".join(str(x) for x in reasons if x))
    return f"{said:.200}{where}"

"""Looks through a pickle of strangers, and makes nothing of it: what would it cost to read?

What a pickle of few bytes can ask for has no bound: values that are shared so that they unfold
without end, keys that take as long to hash, texts that are converted again and again.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterable
from typing import BinaryIO

import torch

# Of opcodes, and of the values that calls get and that one value unfolds to. X-101 with AdamW takes
# 85 thousand, HRNet-W48 with that and an average of its weights 370 thousand.
MAX_STEPS = 3 << 18
MAX_DEPTH = 100
# NumPy's random states have 128.
MAX_INT_BITS = 256
# Of values in a key, and of letters: a key is hashed, compared and shown.
MAX_KEY_SIZE = 16
MAX_KEY_LETTERS = 1 << 12
# Of keys whose hashes a stranger can choose: those that collide take the square of their number.
MAX_CHOSEN_KEYS = 10_000
_MAX_INDEX = MAX_STEPS
# By so much of a file's size calls may copy texts; NumPy's pickles do it up to three times.
_MAX_COPIES = 4

_ENCODINGS = ("latin1", "latin-1", "utf-8", "utf8")
_HASHING = re.compile(r"collections (OrderedDict|Counter)|(builtins|__builtin__) (set|frozenset)")
_CONSTANT = re.compile(
    r"NONE|NEWTRUE|NEWFALSE|(BIN)?INT[12]?|LONG[14]?|(BIN)?FLOAT|STRING|UNICODE|BYTEARRAY8"
    r"|(SHORT_)?BIN(STRING|UNICODE|BYTES)8?"
)
_CONSTANTS = {opcode.name for opcode in pickletools.opcodes if _CONSTANT.fullmatch(opcode.name)}


class Refused(Exception):
    """Why a file is refused, without its name."""


def refused_name(module: str, name: str) -> Refused:
    """Of what a pickle imports."""
    return Refused(
        f"it imports {f'{module}.{name}'!r:.99}, which weights do not need and which may run code. "
        "--trust-weights runs it, for files of people whom you trust."
    )


def check_pickles(
    file: BinaryIO, size: int, admitted: re.Pattern[str] | None, count: int = 1
) -> dict[str, int]:
    """Make sure that pickles import nothing else, and that reading them costs little.

    Args:
        file: at the first one's start; it is read to the last one's end.
        size: of the file, in bytes.
        admitted: ``module name`` of what may be imported; None to leave that to the unpickler.
        count: of the pickles, one behind the other.

    Returns:
        the bytes of each storage of torch that they speak of.

    Raises:
        Refused: a pickle does more, or costs more.
        Exception: of many types, it is broken.
    """
    machine = _Machine(size, admitted)
    for _ in range(count):
        machine.run(file)
    return machine.storages


class _Value:
    """What stands for a value, which is not made."""

    __slots__ = ("chosen", "constant", "depth", "global_name", "parts", "size", "text", "used")

    def __init__(self, constant: object = None) -> None:
        self.size = 1  # of values in it, each as often as it stands in it
        self.depth = 0
        self.chosen = 0  # of values in it whose hashes can be chosen, as often
        self.text = 0  # letters in it, as often
        self.constant: object = constant
        self.global_name = ""
        self.parts: tuple[_Value, ...] | None = None  # of a tuple
        self.used = False  # in another value


class _Machine:
    """Runs opcodes on values that only know their size."""

    def __init__(self, size: int, admitted: re.Pattern[str] | None) -> None:
        self.storages: dict[str, int] = {}
        self._size, self._admitted = size, admitted
        self._steps = self._chosen_keys = self._copied = 0

    def run(self, file: BinaryIO) -> None:
        self._stack: list[_Value] = []
        self._below: list[list[_Value]] = []
        self._memo: dict[int, _Value] = {}
        # What is longer than the rest of the file pickletools refuses itself.
        for opcode, argument, _ in pickletools.genops(file):
            self._count(1)
            if opcode.name in _CONSTANTS:
                self._stack.append(_constant(argument))
            elif opcode.name in _OPCODES:
                _OPCODES[opcode.name](self, argument)
            else:
                raise Refused(f"it uses {opcode.name}, which pickles of weights do not need.")

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise Refused(f"to read it takes more than {MAX_STEPS} steps, as no weights do.")

    def _above_mark(self) -> list[_Value]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _pop(self, count: int) -> list[_Value]:
        if count > len(self._stack):
            raise Refused("it is broken: it takes what it has not made.")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _put_into(self, target: _Value, items: Iterable[_Value]) -> None:
        # What grows after it was shared would unfold to more than was counted.
        if target.used:
            raise Refused("it changes a value that it has put into another one.")
        for item in items:
            item.used = True
            target.size += item.size
            target.text += item.text
            target.chosen += item.chosen
            target.depth = max(target.depth, item.depth + 1)
        if target.size > MAX_STEPS or target.depth > MAX_DEPTH or target.used:
            raise Refused(
                f"it holds values that are nested {MAX_DEPTH} deep, or that unfold to more than "
                f"{MAX_STEPS}."
            )

    def _new(self, items: list[_Value], is_tuple: bool = False) -> None:
        value = _Value()
        self._put_into(value, items)
        value.parts = tuple(items) if is_tuple else None
        self._stack.append(value)

    def _extend(self, items: list[_Value], *, keys: Iterable[_Value] = ()) -> None:
        for key in keys:
            self._check_key(key)
        if not self._stack:
            raise Refused("it is broken: it fills what it has not made.")
        self._put_into(self._stack[-1], items)

    def _check_key(self, key: _Value) -> None:
        if key.size > MAX_KEY_SIZE or key.text > MAX_KEY_LETTERS:
            raise Refused(
                f"it holds a key of more than {MAX_KEY_SIZE} values or {MAX_KEY_LETTERS} letters."
            )
        if type(key.constant) not in (str, bytes):
            self._hash_chosen(key.chosen)

    def _hash_chosen(self, count: int) -> None:
        self._chosen_keys += count
        if self._chosen_keys > MAX_CHOSEN_KEYS:
            raise Refused(f"more than {MAX_CHOSEN_KEYS} of its keys are no names.")

    def _memoize(self, index: int) -> None:
        # The unpickler makes a table of so many places.
        if index > min(self._size, _MAX_INDEX):
            raise Refused("it is cut off, or claims more memory than its size explains.")
        self._memo[index] = self._pop(1)[0]
        self._stack.append(self._memo[index])

    def _frame(self, size: int) -> None:
        if size > self._size:
            raise Refused("it is cut off, or claims more memory than its size explains.")

    def _import(self, name: str) -> None:
        if self._admitted and not self._admitted.fullmatch(name):
            raise refused_name(*name.split(" ", 1))
        value = _Value()
        value.global_name = name
        self._stack.append(value)

    def _import_from_stack(self, _: None) -> None:
        module, name = (part.constant for part in self._pop(2))
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refused("it is broken: it imports what has no name.")
        self._import(f"{module} {name}")

    def _call(self, _: None) -> None:
        function, arguments = self._pop(2)
        if arguments.parts is None:
            raise Refused("it calls a function with something else than a tuple.")
        self._charge(arguments)
        if _HASHING.fullmatch(function.global_name):
            self._hash_chosen(arguments.chosen)
        if function.global_name == "_codecs encode":
            encodings = [part.constant for part in arguments.parts[1:]]
            if len(encodings) > 1 or not all(x in _ENCODINGS for x in encodings):
                shown = encodings[0] if isinstance(encodings[0], str) else encodings
                raise Refused(f"it holds bytes in the encoding {shown!r:.99}.")
        self._new([function, arguments])

    def _build(self, _: None) -> None:
        (state,) = self._pop(1)
        self._charge(state)
        self._extend([state])

    def _charge(self, given: _Value) -> None:
        """Count what is given to a function, which may go through all of it and copy it."""
        self._count(given.size)
        self._copied += given.text
        if self._copied > _MAX_COPIES * self._size:
            raise Refused("it copies its texts again and again.")

    def _storage(self, _: None) -> None:
        (name,) = self._pop(1)
        parts = name.parts or ()
        if name.size > MAX_KEY_SIZE or len(parts) < 5:
            raise Refused("it speaks of numbers that are no storage of torch.")
        kind, key, numel = parts[1].global_name, parts[2].constant, parts[4].constant
        if not (
            kind.endswith("Storage") and type(key) is str and type(numel) is int and numel >= 0
        ):
            raise Refused("it speaks of numbers that are no storage of torch.")
        dtype = torch.serialization.StorageType(kind.rpartition(" ")[2]).dtype
        self.storages[key] = max(self.storages.get(key, 0), numel * dtype.itemsize)
        self._new([name])

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _mark(self, _: None) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _drop(self, _: None) -> None:
        # As the unpicklers do: a mark that is uppermost goes itself.
        self._stack.pop() if self._stack else self._above_mark()

    def _set_items(self, items: list[_Value]) -> None:
        self._extend(items, keys=items[::2])

    def _new_dict(self, _: None) -> None:
        items = self._above_mark()
        self._new([])
        self._set_items(items)

    def _set_elements(self, _: None) -> None:
        items = self._above_mark()
        self._extend(items, keys=items)

    def _new_frozenset(self, _: None) -> None:
        items = self._above_mark()
        self._new([])
        self._extend(items, keys=items)


def _constant(value: object) -> _Value:
    made = _Value()
    if isinstance(value, (str, bytes, bytearray)):
        made.text = len(value)
        if made.text <= MAX_KEY_LETTERS:
            made.constant = value
    elif isinstance(value, int):
        if value.bit_length() > MAX_INT_BITS:
            raise Refused(f"it holds a whole number of more than {MAX_INT_BITS} bits.")
        made.constant = value
        # Small ones cannot all collide.
        made.chosen = int(not 0 <= value <= MAX_STEPS)
    elif isinstance(value, float):
        made.chosen = 1
    return made


def _top(machine: _Machine, _: None) -> None:
    machine._stack.append(machine._stack[-1])


def _nothing(machine: _Machine, _: None) -> None:
    pass


_OPCODES = {
    **dict.fromkeys(("PROTO", "STOP"), _nothing),
    "FRAME": _Machine._frame,
    "MARK": _Machine._mark,
    "POP": _Machine._drop,
    "POP_MARK": lambda machine, _: machine._above_mark(),
    "DUP": _top,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine._get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine._memoize),
    "MEMOIZE": lambda machine, _: machine._memoize(len(machine._memo)),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), lambda machine, _: machine._new([])),
    "EMPTY_TUPLE": lambda machine, _: machine._new([], True),
    "TUPLE": lambda machine, _: machine._new(machine._above_mark(), True),
    "TUPLE1": lambda machine, _: machine._new(machine._pop(1), True),
    "TUPLE2": lambda machine, _: machine._new(machine._pop(2), True),
    "TUPLE3": lambda machine, _: machine._new(machine._pop(3), True),
    "LIST": lambda machine, _: machine._new(machine._above_mark()),
    "DICT": _Machine._new_dict,
    "FROZENSET": _Machine._new_frozenset,
    "APPEND": lambda machine, _: machine._extend(machine._pop(1)),
    "APPENDS": lambda machine, _: machine._extend(machine._above_mark()),
    "SETITEM": lambda machine, _: machine._set_items(machine._pop(2)),
    "SETITEMS": lambda machine, _: machine._set_items(machine._above_mark()),
    "ADDITEMS": _Machine._set_elements,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "BUILD": _Machine._build,
    "GLOBAL": _Machine._import,
    "STACK_GLOBAL": _Machine._import_from_stack,
    "BINPERSID": _Machine._storage,
}

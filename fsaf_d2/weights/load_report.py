"""What became of every tensor of a file and of a model, and which key would have helped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..texts import as_line
from .layouts import Layout

Shape = tuple[int, ...]

# What a model can do without: patterns of names, and why.
_NEEDLESS = (
    (r"(.*\.)?num_batches_tracked", "a counter of batch norm, which nothing here reads"),
    (r"(.*\.)?fc\.(weight|bias)", "the classifier of ImageNet"),
    (r"anchor_generator\.cell_anchors\..*", "follows from MODEL.ANCHOR_GENERATOR"),
    (r"pixel_(mean|std)", "follows from MODEL.PIXEL_MEAN and MODEL.PIXEL_STD"),
)
# Names are of strangers: so many modules are written in a line.
MAX_LISTED = 30
# Blocks of res3 and res4 by depth.
_DEPTHS = {(2, 2): "18", (4, 6): "34 or 50", (4, 23): "101", (8, 36): "152"}


class Misshapen(NamedTuple):
    """A tensor that the model has with another shape than the file."""

    name: str
    in_file: Shape
    in_model: Shape


class LoadReport(NamedTuple):
    """Every tensor of a file and of the model that it was loaded into, in exactly one list."""

    source: str
    loaded: list[str]
    converted: dict[str, str]  # names in the file by those in the model
    missing: list[str]  # of the model, not in the file
    at_default: list[str]  # the same, where the file need not have it
    misshapen: list[Misshapen]
    unexpected: list[str]  # of the file, not in the model
    needless: dict[str, str]  # the same, where a model needs none; why
    shapes: dict[str, Shape]  # of what the file has, by the model's names where it has one
    layout: Layout | None

    @property
    def complete(self) -> bool:
        """Whether all that the model needs was in the file."""
        return not (self.missing or self.misshapen)

    def summary(self) -> str:
        """One line: how many tensors were loaded, and what starts fresh."""
        count = len(self.loaded) + len(self.converted)
        total = count + len(self.missing) + len(self.misshapen)
        line = f"'{self.source}': {count} of the model's {total} tensors are loaded"
        if self.layout:
            line += f", {len(self.converted)} of them from the layout of {self.layout.name}"
        fresh = [*self.missing, *(item.name for item in self.misshapen)]
        if not fresh:
            return f"{line}."
        return f"{line}; {len(fresh)} start fresh: {self.usual() or listed(fresh)}."

    def usual(self) -> str:
        """What starts fresh, where a training from such a file means it to; "" elsewhere."""
        there = [*self.loaded, *self.converted]
        of_classes = [re.search(r"\bcls_score\.", item.name) for item in self.misshapen]
        known = {_branch(name) for name in (*there, *(item.name for item in self.misshapen))}
        of_new_branches = [_branch(name) not in {"", *known} for name in self.missing]
        if there and self.misshapen and all(of_classes) and all(of_new_branches):
            names = listed([*(item.name for item in self.misshapen), *self.missing])
            more = " and lacks a branch" if self.missing else ""
            return f"{names}, as the file is of another number of classes{more}"
        of_backbone = [".bottom_up." in name for name in there]
        behind = [".bottom_up." not in name for name in self.missing]
        if there and all(of_backbone) and all(behind) and not self.misshapen:
            return "all behind the backbone, whose weights these are"
        return ""

    def problems(self, *, advise: bool = True) -> list[str]:
        """Sentences on tensors of another shape, one for each remedy, and on what is not used.

        Args:
            advise: say what the config would have to be for the file's shapes.
        """
        by_remedy: dict[str, list[Misshapen]] = {}
        for item in self.misshapen if advise else ():
            by_remedy.setdefault(remedy(item, self), []).append(item)
        lines = [
            f"{first.name} has the shape {first.in_file} in the file and {first.in_model} by the "
            f"config{f' ({len(others)} more differ likewise)' if others else ''}: {how}."
            for how, (first, *others) in by_remedy.items()
        ]
        if self.unexpected:
            lines.append(
                f"{len(self.unexpected)} tensors of the file are not used: "
                f"{listed(self.unexpected)}."
            )
        fresh = [*self.missing, *(item.name for item in self.misshapen)]
        found = _depth(self.shapes)
        if found not in (None, _depth([*self.loaded, *self.converted, *fresh])):
            lines.append(f"The file's blocks are those of MODEL.RESNETS.DEPTH {found}.")
        return lines

    def without_missing(self) -> str:
        """The key that leaves out what is missing, where that is of some branches; else ""."""
        names = [*self.loaded, *self.converted, *self.missing]
        absent = {_branch(name) for name in self.missing}
        there = list(dict.fromkeys(filter(None, map(_branch, names))))
        left = [name for name in there if name not in absent]
        if self.missing and "" not in absent and left:
            return f'MODEL.BRANCHES "{left}" evaluates the branches that they are for.'
        return ""

    def table(self) -> list[str]:
        """A line for every tensor: what became of it, its name, and its name in the file."""
        rows = [("loaded", name, "") for name in self.loaded]
        rows += [("converted", name, f"from {old}") for name, old in self.converted.items()]
        rows += [("missing", name, "not in the file") for name in self.missing]
        rows += [("at default", name, "not in the file, nor needed") for name in self.at_default]
        rows += [
            ("other shape", item.name, f"{item.in_file} in the file, not {item.in_model}")
            for item in self.misshapen
        ]
        rows += [("unexpected", name, "not in the model") for name in self.unexpected]
        rows += [("needless", name, why) for name, why in self.needless.items()]
        return [as_line(f"{kind:<12}{name}  {note}".rstrip()) for kind, name, note in rows]


def make_report(
    source: str,
    shapes: dict[str, Shape],
    names: list[str],
    found: NamedTuple,
    old_names: dict[str, str],
    layout: Layout | None,
) -> LoadReport:
    """Sort every tensor of a file and of a model.

    Args:
        source: the file.
        shapes: of all that it holds, by the model's names as far as they are known.
        names: of all that the model holds.
        found: what fvcore's checkpointer says was missing or of another shape.
        old_names: the file's names of what was converted, by the model's.
        layout: that it was converted from.
    """
    misshapen = [Misshapen(*item) for item in found.incorrect_shapes]
    absent = {*found.missing_keys, *(item.name for item in misshapen)}
    loaded = [name for name in names if name in shapes and name not in absent]
    known = set(names)
    left_out = layout.left_out if layout else None
    unused = {
        old_names.get(name, name): why_needless(name) or left_out
        for name in shapes
        if name not in known
    }
    return LoadReport(
        source=source,
        loaded=[name for name in loaded if name not in old_names],
        converted={name: old_names[name] for name in loaded if name in old_names},
        missing=[name for name in found.missing_keys if name not in shapes],
        at_default=[name for name in names if name not in shapes and name not in absent],
        misshapen=misshapen,
        unexpected=[name for name, why in unused.items() if why is None],
        needless={name: why for name, why in unused.items() if why},
        shapes=shapes,
        layout=layout,
    )


def why_needless(name: str) -> str | None:
    """Why a model can do without a tensor of this name; None if it cannot be said."""
    return next((why for pattern, why in _NEEDLESS if re.fullmatch(pattern, name)), None)


def grouped(names: Iterable[str]) -> list[str]:
    """Names with those of one module written together, as ``head.cls_score.{bias,weight}``."""
    modules: dict[str, list[str]] = {}
    for name in names:
        module, _, field = name.rpartition(".")
        modules.setdefault(module, []).append(field)
    return [
        as_line(".".join(filter(None, (module, _braced(sorted(fields))))))
        for module, fields in modules.items()
    ]


def listed(names: Iterable[str]) -> str:
    """The first modules of these names, and how many more there are."""
    modules = grouped(names)
    more = len(modules) - MAX_LISTED
    return ", ".join(modules[:MAX_LISTED]) + (f" and {more} more modules" if more > 0 else "")


def _braced(fields: list[str]) -> str:
    return fields[0] if len(fields) == 1 else f"{{{','.join(fields)}}}"


def remedy(item: Misshapen, report: LoadReport) -> str:
    """Name the keys by which the model would have the file's shape of a tensor."""
    name, found = item.name, item.in_file
    if len(found) != len(item.in_model) or 0 in found:
        return "this is no layer of such a model"
    if re.search(r"\b(cls_score|bbox_pred)\.", name):
        return _remedy_of_output(item, report)
    if re.search(r"\.(fpn_|top_block\.)|^(head|towers|branches)\.", name):
        if found[0] != item.in_model[0]:
            return f"MODEL.FPN.OUT_CHANNELS {found[0]} fits it"
        return "the backbone (MODEL.RESNETS.DEPTH, RES2_OUT_CHANNELS) is another"
    if ".bottom_up.net." in name:
        return "MODEL.TIMM.NAME must be the network whose weights they are"
    if ".stem." in name:
        return f"MODEL.RESNETS.STEM_OUT_CHANNELS {found[0]} fits it"
    return _remedy_of_block(name, report)


def _remedy_of_output(item: Misshapen, report: LoadReport) -> str:
    if item.in_file[1:] != item.in_model[1:]:
        return f"MODEL.FPN.OUT_CHANNELS {item.in_file[1]} fits it"
    part = item.name.rpartition("cls_score")[0] or item.name.rpartition("bbox_pred")[0]
    boxes = _conv(report, f"{part}bbox_pred.weight")[0] // 4
    if any(other.name == f"{part}bbox_pred.bias" for other in report.misshapen):
        return (
            f"MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS with {boxes} boxes for each location "
            "fit it"
        )
    return f"MODEL.RETINANET.NUM_CLASSES {item.in_file[0] // max(boxes, 1)} fits it"


def _remedy_of_block(name: str, report: LoadReport) -> str:
    first = f"{name.partition('res')[0]}res2.0"
    conv2, conv3 = (_conv(report, f"{first}.{layer}.weight") for layer in ("conv2", "conv3"))
    if conv2[0] and conv3[0]:
        return (
            f"MODEL.RESNETS.NUM_GROUPS {conv2[0] // conv2[1]}, WIDTH_PER_GROUP {conv2[1]} and "
            f"RES2_OUT_CHANNELS {conv3[0]} fit it"
        )
    if conv2[0]:
        return f"MODEL.RESNETS.DEPTH 18 or 34 with RES2_OUT_CHANNELS {conv2[0]} fits it"
    return "MODEL.RESNETS must be as in the config that it was trained with"


def _branch(name: str) -> str:
    """The branch of a detector that a tensor is of; "" for none."""
    part, _, rest = name.partition(".")
    return rest.partition(".")[0] if part == "branches" else ""


def _conv(report: LoadReport, name: str) -> Shape:
    """The file's shape of a convolution; zeros where it has none."""
    shape = report.shapes.get(name, ())
    return shape if len(shape) == 4 and 0 not in shape else (0, 0, 0, 0)


def _depth(names: Iterable[str]) -> str | None:
    blocks = {tuple(x) for name in names for x in re.findall(r"\bres(\d)\.(\d+)\.", name)}
    return _DEPTHS.get(tuple(sum(stage == x for stage, _ in blocks) for x in "34"))

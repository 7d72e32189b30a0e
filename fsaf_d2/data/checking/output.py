"""What the checks found, for people and for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from tabulate import tabulate

from ...plain_json import parse_json
from ...regular_files import open_regular
from ...texts import as_line
from ..reading.formats.foreign_files import decode_text
from ..reading.formats.source import Finding
from .check_source import Check, statistics
from .findings import summarise
from .fix import MENDS, Fixed

SHOWN = 20
# Of errors, in the message that stops a run.
FIRST = 5
# Of values and names in tables.
WIDTH = 70
VALUE_WIDTH = 300


def to_dict(check: Check, limit: int | None = SHOWN) -> dict:
    """Findings and statistics as JSON has them.

    Args:
        limit: how many findings of a kind; None for all.

    Returns:
        ``annotation_file``, ``image_root``, ``format``; ``notes`` of the reader; ``findings``, see
        :func:`.findings.summarise`; ``statistics``, see :func:`.check_source.statistics`.
    """
    return {
        "annotation_file": check.source.annotation_file,
        "image_root": check.source.image_root,
        "format": check.source.format,
        "notes": check.source.notes,
        "findings": summarise(check.findings, limit),
        "statistics": statistics(check),
    }


def as_text(content: dict) -> str:
    """Say what :func:`to_dict` has: what there is, kinds with counts, the first of each kind."""
    return "\n\n".join(_paragraphs(content))


def _paragraphs(content: dict) -> Iterator[str]:
    found, counts = content["findings"], content["statistics"]
    yield (
        f"{content['annotation_file']} ({content['format']}), images in "
        f"{content['image_root']}:\n{counts['images']} images, {counts['boxes']} boxes, "
        f"{len(counts['classes'])} classes; {counts['images_without_objects']} images without "
        "objects, which are background"
    )
    if content["notes"]:
        yield "\n".join(content["notes"])
    sizes = [
        [_cut(name), count, *counts["sizes_by_class"][name].values()]
        for name, count in _most(counts)
    ]
    if sizes:
        yield tabulate(sizes, ["class", "boxes", "small", "medium", "large"], disable_numparse=[0])
    rows = [[x["severity"], kind, x["count"]] for kind, x in found.items()]
    yield tabulate(rows, ["", "kind", "count"]) if rows else "Nothing is wrong."
    for kind, x in found.items():
        yield _first(kind, x)


def _most(counts: dict) -> list[tuple[str, int]]:
    """The classes with the most boxes."""
    return sorted(counts["classes"].items(), key=lambda item: -item[1])[:SHOWN]


def _first(kind: str, found: dict) -> str:
    shown = found["first"][:SHOWN]
    number = f"the first {len(shown)} of {found['count']}" if found["count"] > SHOWN else len(shown)
    remedies = list(dict.fromkeys(x["remedy"] for x in shown))
    lines = [f"{found['severity']}: {kind} ({number})"]
    if len(remedies) == 1:
        lines += textwrap.wrap(remedies[0], 98, initial_indent="  ", subsequent_indent="  ")
    headers = ["file", "annotation", "value"] + ["remedy"] * (len(remedies) > 1)
    rows = [
        [
            _cut(x["file"], keep_end=True),
            x["annotation_id"],
            _cut(x["value"], VALUE_WIDTH),
            x["remedy"],
        ]
        for x in shown
    ]
    table = tabulate([row[: len(headers)] for row in rows], headers, disable_numparse=True)
    return "\n".join([*lines, textwrap.indent(table, "  ")])


def _cut(text: str, width: int = WIDTH, *, keep_end: bool = False) -> str:
    # Names from the file may have anything in them, line feeds and control sequences too.
    text = as_line(text)
    if len(text) <= width:
        return text
    return f"...{text[3 - width :]}" if keep_end else f"{text[: width - 3]}..."


def coverage_text(found: dict) -> str:
    """Say what :func:`.check_coverage.coverage` found, beginning with how images are resized."""
    has_locations = found["groups"]["all"]["shared"] is not None
    rows = []
    for name, x in found["groups"].items():
        iou, least = x["mean_best_iou"], x["least_locations"]
        row = [
            name,
            x["objects"],
            _with_share(x, "no_anchor"),
            "n/a" if iou is None else f"{iou:.2f}",
        ]
        if has_locations:
            row += ["n/a" if least is None else least]
            row += [_with_share(x, "shared"), _with_share(x, "covered")]
        rows.append(row)
    headers = [
        "objects\n(by area in\nthe file)",
        "\n\nnumber",
        f"no anchor\nreaches IoU\n{found['iou']:g}",
        "mean of\nthe best\nIoUs",
        "locations on\nany level,\nat least",
        "loses locations\nto smaller ones\non its own level",
        "loses all\nof them\nthere",
    ][: len(rows[0])]
    what = "the anchors\nand the locations without anchors" if has_locations else "the anchors"
    text = (
        f"With images resized to a short side of {found['min_size_test']} (long side up to "
        f"{found['max_size_test']}), {what} reach:\n\n"
        f"{tabulate(rows, headers, disable_numparse=True)}\n\n"
        "An object that no anchor reaches is learnt from its best anchor alone."
    )
    if has_locations:
        text += " Its own level is the one that its\nsize chooses; online selection may choose any."
    return text


def _with_share(group: dict, key: str) -> str:
    return f"{group[key]} ({100 * group[key] / max(group['objects'], 1):.1f} %)"


def loss_text(fixed: Fixed, path: str, *, is_allowed: bool) -> str:
    """Say what a mended file lacks; empty if nothing."""
    lost = [f"{x.lost} of {x.total} {x.what}" for x in fixed.losses if x.lost]
    if not lost:
        return ""
    if fixed.loses_much and not is_allowed:
        return (
            f"error: --fix would leave out {' and '.join(lost)}, more than a tenth: '{path}' is "
            "not written. Mend what is named below by hand, or say --allow-loss."
        )
    return f"--fix leaves out {' and '.join(lost)}."


def fixed_text(fixed: Fixed, path: str, *, is_written: bool) -> str:
    """Say what was mended and what is left."""
    rows = [[kind, count, MENDS[kind]] for kind, count in fixed.changes.items()]
    changed = tabulate(rows, ["mended", "count", "how"]) if rows else "Nothing was mended."
    if not is_written:
        return f"{changed}\n\n'{path}' is not written: see the first line."
    left = summarise(x for x in fixed.check.findings if x.severity == "error")
    if left:
        errors = ", ".join(f"{x['count']} x {kind}" for kind, x in left.items())
        outcome = f"Errors are left: {errors}. They are not of a kind that is certain to mend."
    else:
        outcome = (
            f"No errors are left: check_data.py {path}:{fixed.check.source.image_root} passes."
        )
    return f"{changed}\n\nWritten to {path}. {outcome}"


def to_file(fixed: Fixed) -> dict:
    """The mended annotation file, with all else that was in a JSON file before."""
    source = fixed.check.source
    if not source.annotation_file.lower().endswith(".json"):
        return source.data
    with open_regular(source.annotation_file) as file:
        return {**parse_json(decode_text(file.read())), **source.data}


def one_line(findings: list[Finding]) -> str:
    """Kinds with their counts, in a line."""
    return ", ".join(f"{x['count']} x {kind}" for kind, x in summarise(findings, 0).items())


def error_text(check: Check, what: str, command: str) -> str:
    """Say that errors stop a run: their kinds and numbers, the first, and how to see all.

    Args:
        check: with errors.
        what: was checked, such as ``Data set 'own_train'``.
        command: that shows all of them.
    """
    said = [
        (finding, f"'{finding.file}': {finding.kind}: {finding.value}. {finding.remedy}")
        for finding in check.source.findings
    ]
    said += [
        (x.finding, f"'{_place(check, x.finding)}': {x.sentence}. {x.finding.remedy}")
        for x in check.flaws
    ]
    said = [(finding, line) for finding, line in said if finding.severity == "error"]
    remedy = "What is certain is mended in a copy of the annotations by --fix OUT.json."
    # One of each kind before more of the same.
    first = list({finding.kind: line for finding, line in reversed(said)}.values())[::-1]
    first = [*first, *(line for _, line in said if line not in first)][:FIRST]
    kinds = one_line([finding for finding, _ in said])
    return "\n".join(
        [
            f"{what} has {len(said)} error{'s' if len(said) > 1 else ''}: {kinds}. The first:",
            *(f"  {line}" for line in first),
            f"All of them: {command}",
            *([remedy] if MENDS.keys() & {finding.kind for finding, _ in said} else []),
        ]
    )


def _place(check: Check, finding: Finding) -> str:
    """The file that a person must look into."""
    return finding.file if check.source.places else check.source.annotation_file

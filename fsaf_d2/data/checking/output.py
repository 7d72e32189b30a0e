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
# Letters of a value or a name.
WIDTH = 300
# Without -v: errors of a kind, and classes.
FEW = 3
CLASSES = 8


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


def as_text(content: dict, *, verbose: bool = False) -> str:
    """Say what :func:`to_dict` has: what there is, kinds with counts, the first of each kind.

    Args:
        content: of :func:`to_dict`.
        verbose: more classes, and up to :data:`SHOWN` findings of a kind.
    """
    return "\n".join(_paragraphs(content, verbose))


def _paragraphs(content: dict, verbose: bool) -> Iterator[str]:
    found, counts = content["findings"], content["statistics"]
    yield (
        f"{content['annotation_file']} ({content['format']}), images in "
        f"{content['image_root']}:\n{counts['images']} images, {counts['boxes']} boxes, "
        f"{len(counts['classes'])} classes; {counts['images_without_objects']} images without "
        "objects, which are background"
    )
    yield from content["notes"]
    rows = _class_rows(counts, SHOWN if verbose else CLASSES)
    if rows:
        yield tabulate(rows, ["class", "boxes", "small", "medium", "large"], disable_numparse=[0])
    if not found:
        yield "Nothing is wrong."
    for kind, x in found.items():
        yield _first(kind, x) if verbose else _in_short(kind, x)


def _class_rows(counts: dict, limit: int) -> list[list]:
    """The classes with the most boxes; all others in one row."""
    ordered = sorted(counts["classes"].items(), key=lambda item: -item[1])
    limit = limit if len(ordered) > limit + 1 else len(ordered)
    sizes = counts["sizes_by_class"]
    rows = [[_cut(name), count, *sizes[name].values()] for name, count in ordered[:limit]]
    if rest := ordered[limit:]:
        sums = [sum(column) for column in zip(*(sizes[name].values() for name, _ in rest))]
        rows.append([f"{len(rest)} others", sum(count for _, count in rest), *sums])
    return rows


def _in_short(kind: str, found: dict) -> str:
    """A finding or a few, on a line each."""
    shown = found["first"][: FEW if found["severity"] == "error" else 1]
    rest = found["count"] - len(shown)
    lines = [f"{found['severity']}: {kind} ({found['count']}): {shown[0]['remedy']}"]
    for x in shown:
        number = "" if x["annotation_id"] is None else f", annotation {x['annotation_id']}"
        lines.append(f"  {_cut(x['file'])}{number}: {_cut(x['value'])}")
    if rest:
        lines[-1] += f" (and {rest} more: -v, or all in --json F)"
    return "\n".join(lines)


def _first(kind: str, found: dict) -> str:
    shown = found["first"][:SHOWN]
    number = f"the first {len(shown)} of {found['count']}" if found["count"] > SHOWN else len(shown)
    remedies = list(dict.fromkeys(x["remedy"] for x in shown))
    lines = [f"{found['severity']}: {kind} ({number})"]
    if len(remedies) == 1:
        lines += textwrap.wrap(remedies[0], 98, initial_indent="  ", subsequent_indent="  ")
    headers = ["file", "annotation", "value"] + ["remedy"] * (len(remedies) > 1)
    rows = [[_cut(x["file"]), x["annotation_id"], _cut(x["value"]), x["remedy"]] for x in shown]
    table = tabulate([row[: len(headers)] for row in rows], headers, disable_numparse=True)
    return "\n".join([*lines, textwrap.indent(table, "  ")])


def _cut(text: str) -> str:
    # Names from the file may have anything in them, line feeds and control sequences too.
    text = as_line(text)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def coverage_text(found: dict) -> str:
    """Say what :func:`.check_coverage.coverage` found, ending with what to change."""
    groups = found["groups"]
    has_locations = groups["all"]["shared"] is not None
    rows = []
    for name, x in groups.items():
        lost = [x["no_anchor"], *(side["no_anchor"][name] for side in found["sides"])]
        row = [name, x["objects"], *(_with_share(count, x) for count in lost)]
        if has_locations:
            row += [_with_share(x["shared"], x), _with_share(x["covered"], x)]
        rows.append(row)
    now = found["min_size_test"]
    headers = ["objects", "number", f"{now} px" if now else "as they are"]
    headers += [f"{side['min_size_test']} px" for side in found["sides"]]
    headers += ["share some", "or all"] if has_locations else []
    said = f"Objects out of the anchors' reach (best IoU below {found['iou']:g}), by short side"
    if has_locations:
        said += "; those that without\nanchors share locations with smaller objects of their level"
    table = tabulate(rows, headers, disable_numparse=True)
    return "\n".join([f"{said}:", table, found["advice"]])


def _with_share(count: int, group: dict) -> str:
    total = group["objects"]
    return f"{count} ({100 * count / total:.1f} %)" if total else "n/a"


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

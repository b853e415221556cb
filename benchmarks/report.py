"""What was measured, for people: a line after each row and a table at the end, both from the JSON of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Bursts of one side that lie further apart than this share of their median make the ratio a rough one.
_UNSTABLE = 0.1

_HEAD = ("Row", "Model and input", "Workers x batch", "MPS", "Naive/s", "Ours/s", "Ratio", "Wanted", "p99 of both",
         "Errors")  # fmt: skip


def line(found: Mapping[str, Any]) -> str:
    """One row."""
    row = found["row"]
    how = f"{row['title']}, {row['workers']} x batch {row['batch']}, MPS {'on' if row['mps'] else 'off'}"
    if "error" in found:
        return f"row {row['number']}: {how}: FAILED after {found['took_s']} s: {found['error']}"
    words = [f"row {row['number']}: {how}: ratio {_ratio(found)} (wanted {row['wanted']})"]
    for name, middle in found["median"].items():
        raw = [f"{one['requests_per_s']:.1f}" for one in found["bursts"].get(name, ())]
        text = f"{name} {middle['requests_per_s']:.1f}/s"
        if raw:
            text += f" of {' '.join(raw)}, p50 {middle['p50_ms']:.1f} p99 {middle['p99_ms']:.1f} ms"
            text += f", {middle['errors']:.0f} errors"
        words.append(text)
    if "stages_ms" in found:
        stages = ", ".join(f"{name} {value:.2f}" for name, value in found["stages_ms"].items())
        words.append(f"each run of ours, ms: {stages}")
    words += [one["first_error"] for one in every_burst(found) if one["first_error"]][:1]
    fine = "" if found["agreement"]["fine"] else "ANSWERS DIFFER: "
    return "; ".join([*words, fine + found["agreement"]["text"], f"took {found['took_s']} s"])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All rows as Markdown, and below it what has to be known beside the figures."""
    lines = [_cells(_HEAD), "|---" * len(_HEAD) + "|"]
    notes: list[str] = []
    for found in rows:
        row = found["row"]
        head = (row["number"], row["title"], f"{row['workers']} x {row['batch']}", "on" if row["mps"] else "off")
        if "error" in found:
            lines.append(_cells((*head, "", "", "failed", row["wanted"], "", "")))
            continue
        middle = found["median"]
        naive, ours = middle["naive"], middle["ours"]
        p99 = f"{naive['p99_ms']:.1f}, {ours['p99_ms']:.1f} ms"
        lines.append(_cells((*head, _rate(naive), _rate(ours), _ratio(found), row["wanted"], p99, _errors(found))))
        notes += [f"Row {row['number']}: {note}" for note in _notes(found)]
    return "\n".join([*lines, "", *notes]).strip()


def every_burst(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All bursts of a row, those first ones that no median counts included: an error is an error."""
    return [one for part in ("first_bursts", "bursts") for many in found[part].values() for one in many]


def _notes(found: Mapping[str, Any]) -> list[str]:
    middle, notes = found["median"], []
    for name in ("naive", "ours"):
        apart = (middle[name]["most_per_s"] - middle[name]["least_per_s"]) / middle[name]["requests_per_s"]
        if apart > _UNSTABLE:
            notes.append(f"bursts of {name} lie {apart:.0%} apart, so the ratio is a rough one.")
    for name in ("noop", "bare"):
        if name in middle:
            most = middle[name]["requests_per_s"]
            share = middle["ours"]["requests_per_s"] / most if most else 0.0
            notes.append(f"{name} {most:.1f}/s, ours is {share:.1%} of it.")
    if not found["agreement"]["fine"]:
        notes.append(f"the answers differ: {found['agreement']['text']}.")
    return notes


def _cells(values: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, values))} |"


def _rate(middle: Mapping[str, float]) -> str:
    return f"{middle['requests_per_s']:.1f} ({middle['least_per_s']:.1f} to {middle['most_per_s']:.1f})"


def _ratio(found: Mapping[str, Any]) -> str:
    return f"{found['ratio']:.2f} ({found['ratio_least']:.2f} to {found['ratio_most']:.2f})"


def _errors(found: Mapping[str, Any]) -> int:
    return sum(sum(one["errors"].values()) for one in every_burst(found))

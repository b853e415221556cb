"""Which arms form a line in a chart, under which name and in which style: the same in all charts of a study."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ts_mps.bench.findings import ArmFigures, Interval
from ts_mps.bench.records import Arm, Study
from ts_mps.bench.report.parts import Panel, Point, Series
from ts_mps.bench.wording import number

#: Styles 0 and 1 are kept for what every study is about, so that a reader of two reports need not learn them anew.
_OFF, _ON = 0, 1


@dataclass(frozen=True)
class Look:
    """How one arm is drawn: ``label`` and ``style`` as in :class:`~ts_mps.bench.report.parts.Series`."""

    label: str
    style: int


def looks(study: Study) -> dict[str, Look]:
    """Arm name -> look. Arms that differ only in workers and batch size look the same."""
    arms = [arm for arm in study.arms if not arm.noop]
    engines = len({arm.engine for arm in arms}) > 1
    names = {name for arm in arms for name in arm.options}
    differing = frozenset(name for name in names if len({arm.options.get(name) for arm in arms}) > 1)
    labels = {arm.name: _name(arm, engines=engines, options=differing) for arm in arms}
    kept = {"MPS off": _OFF, "MPS on": _ON}
    free = [label for label in dict.fromkeys(labels.values()) if label not in kept]
    # A study without the two that are kept (on the CPU, of several engines) begins with the first style.
    first = 2 if any(label in kept for label in labels.values()) else 0
    styles = {**kept, **{label: first + place for place, label in enumerate(free)}}
    return {name: Look(label, styles[label]) for name, label in labels.items()}


def _name(arm: Arm, *, engines: bool, options: frozenset[str]) -> str:
    """What tells an arm from the others apart from workers and batch size: "MPS on, 50 %".

    Args:
        arm: The arm.
        engines: Whether the study has several, so that the engine must be named.
        options: Names of the options that are not the same in all arms.
    """
    parts = [arm.engine] if engines else []
    parts.append("CPU" if arm.device == "cpu" else "MPS on" if arm.mps else "MPS off")
    if arm.thread_percentage is not None:
        parts.append(f"{arm.thread_percentage:g} %")
    parts += [f"{name} {value}" for name, value in sorted(arm.options.items()) if name in options]
    return ", ".join(parts)


def panels(
    study: Study,
    figures: Iterable[ArmFigures],
    *,
    x: Callable[[Arm], float],
    other: Callable[[Arm], float],
    other_name: Callable[[float], str],
    value: Callable[[ArmFigures], Interval],
) -> tuple[Panel, ...]:
    """One panel for each group and value of ``other``, in it a line for each look.

    Args:
        study: Whose arms they are.
        figures: Of one kind of load.
        x: What the lines run along: workers, or the batch size.
        other: The other of the two.
        other_name: Of a value of it, for a panel's title: "batch size 8".
        value: What is drawn.

    Returns:
        Panels of which at least one line has two points; none where nothing runs along x.
    """
    look = looks(study)
    points: dict[tuple[str, float], dict[Look, list[Point]]] = {}
    for found in figures:
        arm = study.arm(found.arm)
        if arm.noop:
            continue
        shown = value(found)
        point = Point(x(arm), shown.middle, shown.low, shown.high)
        points.setdefault((arm.group, other(arm)), {}).setdefault(look[arm.name], []).append(point)
    several_groups = len({group for group, _ in points}) > 1
    found_panels = []
    for (group, at), lines in sorted(points.items(), key=lambda item: item[0]):
        if all(len({point.x for point in line}) < 2 for line in lines.values()):
            continue
        title = other_name(at)
        found_panels.append(Panel(f"{group}, {title}" if several_groups else title, lines_of(lines)))
    return tuple(found_panels)


def lines_of(lines: dict[Look, list[Point]]) -> tuple[Series, ...]:
    """Lines in the order of their styles, each ascending by x."""
    return tuple(
        Series(look.label, look.style, tuple(sorted(points, key=lambda point: point.x)))
        for look, points in sorted(lines.items(), key=lambda item: item[0].style)
    )


def in_words(found: Iterable[Panel], x: str, unit: str) -> str:
    """The figures of panels as sentences, for who cannot see the chart.

    Args:
        found: The panels.
        x: What they run along, with the figure's place: "{} workers".
        unit: Of the figures, such as "requests/s".
    """
    sentences = []
    for panel in found:
        for line in panel.series:
            figures = ", ".join(f"{number(point.y)} {unit} at {x.format(number_of(point.x))}" for point in line.points)
            sentences.append(f"{panel.title}{', ' if panel.title else ''}{line.label}: {figures}.")
    return " ".join(sentences)


def number_of(value: float) -> str:
    """A number of workers or a batch size, which are whole; a rate may not be."""
    return f"{value:,.0f}" if value == int(value) else number(value)

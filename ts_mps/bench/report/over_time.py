"""GPUs over the counted time: charts of what NVML said twice a second."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from ts_mps.bench.cells import why_not
from ts_mps.bench.records import GpuSample, Study
from ts_mps.bench.report.charts import MOST_PANELS
from ts_mps.bench.report.parts import LineChart, Panel, Point
from ts_mps.bench.report.series import Look, lines_of, looks
from ts_mps.bench.wording import count, number

_GIB = 2**30

_Read = Callable[[GpuSample], "float | None"]


def gpu_charts(study: Study) -> tuple[LineChart, ...]:
    """GPU utilisation and memory, second by second: the mean over the GPUs and closed-loop runs of each arm."""
    charts = []
    for name, title, unit, read, most in (
        ("utilisation", "GPU utilisation while counted (%)", "%", _utilisation, 105.0),
        ("memory", "GPU memory in use while counted (GiB)", "GiB", _memory, None),
    ):
        drawn = _panels(study, read)
        if drawn:
            alt = " ".join(
                f"{panel.title}, {line.label}: "
                f"{number(sum(point.y for point in line.points) / len(line.points))} {unit} on average."
                for panel in drawn
                for line in panel.series
            )
            charts.append(LineChart(f"gpu-{name}", title, alt, "seconds", unit, drawn, most=most))
    return tuple(charts)


def _panels(study: Study, read: _Read) -> tuple[Panel, ...]:
    look = looks(study)
    found: dict[tuple[str, int, int], dict[Look, dict[int, list[float]]]] = defaultdict(dict)
    for run in study.runs:
        if run.arm not in look or run.result is None or why_not(run) or run.result.load.kind != "closed":
            continue
        arm = study.arm(run.arm)
        seconds = found[arm.group, arm.workers, arm.batch_size].setdefault(look[arm.name], defaultdict(list))
        for sample in run.samples:
            value = read(sample)
            if value is not None:
                seconds[int(sample.at)].append(value)
    several = len({group for group, _, _ in found}) > 1
    panels = []
    for (group, workers, batch), by_look in sorted(found.items()):
        lines = {
            look: [_point(at + 0.5, sum(values) / len(values)) for at, values in seconds.items()]
            for look, seconds in by_look.items()
            if seconds
        }
        title = f"{count(workers, 'worker')} x {batch}"
        if lines:
            panels.append(Panel(f"{group}, {title}" if several else title, lines_of(lines)))
    return tuple(panels[:MOST_PANELS])


def _point(at: float, value: float) -> Point:
    return Point(at, value, value, value)


def _utilisation(sample: GpuSample) -> float | None:
    return sample.utilisation


def _memory(sample: GpuSample) -> float | None:
    return None if sample.memory is None else sample.memory / _GIB

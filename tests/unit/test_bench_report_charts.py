"""What is drawn, as data."""

from __future__ import annotations

from benching import arm, result, run, study

from ts_mps.bench.report.charts import latency_by_rate
from ts_mps.bench.summary import summarise

FOUR = arm(4, mps=True)


def lines(*loads: tuple[str, float]) -> dict[str, list[float]]:
    runs = [run(FOUR, block, result(rate, 5.0, kind=kind, rate=rate)) for block, (kind, rate) in enumerate(loads)]
    made = study(runs=runs, arms=(FOUR,))
    chart = latency_by_rate(made, summarise(made))
    assert chart is not None
    return {line.label: [point.x for point in line.points] for panel in chart.panels for line in panel.series}


def test_arrivals_of_two_kinds_are_two_lines():
    found = lines(("poisson", 100.0), ("constant", 200.0), ("poisson", 300.0))
    assert found == {
        "MPS on, Poisson, p99": [100.0, 300.0],
        "MPS on, Poisson, p50": [100.0, 300.0],
        "MPS on, constant, p99": [200.0],
        "MPS on, constant, p50": [200.0],
    }


def test_one_kind_needs_no_name():
    assert lines(("poisson", 300.0), ("poisson", 100.0)) == {
        "MPS on, p99": [100.0, 300.0],
        "MPS on, p50": [100.0, 300.0],
    }

"""Two studies compared: what changed, and what else was not the same."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from benching import MACHINE, arm, result, run, study

from ts_mps.bench.difference import Difference, difference, judge_unpaired
from ts_mps.bench.findings import Caution
from ts_mps.bench.records import Arm

ONE, FOUR, FOUR_ON = arm(1), arm(4), arm(4, mps=True)


def verdicts(found: Difference) -> dict[str, str]:
    return {change.arm: change.verdict for change in found.changes}


def cautions(found: Difference, kind: str) -> list[Caution]:
    return [caution for caution in found.cautions if caution.kind == kind]


def test_what_became_faster_slower_and_stayed_is_told_apart() -> None:
    before = study([(ONE, 1000), (FOUR, 2000), (FOUR_ON, 3000)], seed=1)
    after = study([(ONE, 1000), (FOUR, 2400), (FOUR_ON, 2500)], seed=2)
    found = difference(before, after)
    assert verdicts(found) == {ONE.name: "no difference", FOUR.name: "better", FOUR_ON.name: "worse"}
    change = found.changes[1]
    assert change.before == pytest.approx(2000, rel=0.02)
    assert change.after == pytest.approx(2400, rel=0.02)
    assert change.ratio.low < 1.2 < change.ratio.high
    assert f"; better in 1 of 3 comparisons: {FOUR.name} (1.2" in found.headline
    assert "8 and 8 runs" in change.why
    assert found.cautions == ()


def test_a_study_against_itself_has_no_difference() -> None:
    found = difference(study(), study())
    assert set(verdicts(found).values()) == {"no difference"}
    assert all(change.ratio.middle == 1 for change in found.changes)


@pytest.mark.parametrize("runs", [6, 10])
def test_the_interval_holds_the_true_ratio_in_95_of_100_and_equal_arms_are_never_told_apart(runs: int) -> None:
    random = np.random.default_rng(runs)
    judged = [
        judge_unpaired(
            np.exp(random.normal(0, 0.02, runs)).tolist(), np.exp(random.normal(0, 0.02, runs)).tolist(), 0.03
        )
        for _ in range(200)
    ]
    assert sum(one.ratio.low <= 1 <= one.ratio.high for one in judged) >= 184
    assert not [one for one in judged if one.verdict in ("better", "worse")]


def test_open_loops_are_compared_by_p99() -> None:
    def made(ms: float) -> list[object]:
        return [run(FOUR, block, result(100, ms, kind="poisson", rate=100.0, seed=block)) for block in range(6)]

    found = difference(study(runs=made(20.0), arms=(FOUR,)), study(runs=made(30.0), arms=(FOUR,)))
    assert [(c.measure, c.kind, c.rate, c.verdict) for c in found.changes] == [("p99", "poisson", 100.0, "worse")]
    assert "at 100 requests/s (Poisson)" in found.headline


def test_fewer_than_six_runs_decide_nothing() -> None:
    found = difference(study([(ONE, 1000)], blocks=5), study([(ONE, 2000)], blocks=8))
    assert verdicts(found) == {ONE.name: "not decided"}
    assert found.changes[0].ratio.low == found.changes[0].ratio.high
    assert "5 and 8 runs" in cautions(found, "too few pairs")[0].text
    assert "6 runs of each" in found.changes[0].why


def test_failed_runs_do_not_count() -> None:
    before = study([(ONE, 1000)], blocks=6)
    broken = replace(before, runs=(*before.runs[:5], run(ONE, 5, failure="It died.")))
    assert difference(before, broken).changes[0].ratio.runs == 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"driver": "590.10"}, "driver was 580.159.04 and is 590.10."),
        ({"versions": {**MACHINE["versions"], "torch": "2.12.0"}}, "versions.torch was 2.11.0 and is 2.12.0."),
        ({"host": "bench-2"}, "host was bench-1 and is bench-2."),
        ({"cuda": None}, "cuda was 13.0 and is not known."),
        ({"environment": ["OMP_NUM_THREADS=3"]}, "environment was nothing and is ['OMP_NUM_THREADS=3']."),
        ({"nodes": 2}, "nodes was not known and is 2."),
    ],
)
def test_another_machine_driver_or_version_is_told(change: dict[str, object], told: str) -> None:
    found = difference(study(), study(machine={**MACHINE, **change}))
    assert [caution.text for caution in cautions(found, "other machine")] == [told]


def test_another_workload_or_load_is_told() -> None:
    before = study([(ONE, 1000)])
    found = difference(before, replace(before, workload={**before.workload, "payload_bytes": 4096}))
    assert [one.text for one in cautions(found, "other workload")] == ["payload_bytes was 512 and is 4096."]
    shorter = study(runs=[run(ONE, block, result(1000, seconds=5.0)) for block in range(6)], arms=(ONE,))
    texts = [one.text for one in cautions(difference(before, shorter), "other workload")]
    assert texts == [
        "Its load (closed loop) was 64 connections for 10 s after 2 s and is 64 connections for 5 s after 2 s."
    ]


def test_arms_of_one_study_alone_are_named_and_not_compared() -> None:
    found = difference(study([(ONE, 1000), (FOUR, 2000)]), study([(ONE, 1000), (FOUR_ON, 3000)]))
    assert (found.only_before, found.only_after) == ((FOUR.name,), (FOUR_ON.name,))
    assert list(verdicts(found)) == [ONE.name]


def test_an_arm_of_the_same_name_that_is_set_up_differently_is_not_compared() -> None:
    other = Arm(ONE.name, workers=1, batch_size=16, mps=False)
    found = difference(study([(ONE, 1000)]), study([(other, 1000)]))
    assert found.changes == ()
    assert "batch_size=8" in cautions(found, "other workload")[0].text
    assert "nothing to compare" in found.headline


def test_a_study_that_was_broken_off_is_told() -> None:
    found = difference(study(), study(incomplete="Ctrl-C in block 8."))
    assert [one.text for one in cautions(found, "incomplete")] == [
        "The second study was broken off: Ctrl-C in block 8."
    ]


def test_no_op_arms_are_left_out_and_empty_studies_have_nothing_to_compare() -> None:
    noop = arm(4, noop=True, device="cpu")
    assert difference(study([(noop, 9000)]), study([(noop, 9000)])).changes == ()
    assert difference(study(blocks=0), study(blocks=0)).changes == ()


def test_the_result_can_be_written_as_json() -> None:
    assert json.loads(json.dumps(asdict(difference(study(), study()))))["margin"] == 0.03


def test_a_margin_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="margin"):
        difference(study(), study(), margin=-0.1)


def test_the_headline_stays_short_however_many_arms_there_are() -> None:
    arms = [arm(workers, batch) for workers in (1, 2, 4) for batch in (1, 8)]
    factors = (1.0, 1.0, 1.3, 1.1, 0.5, 0.8)
    before = study([(one, 1000) for one in arms], seed=1)
    after = study([(one, 1000 * factor) for one, factor in zip(arms, factors, strict=True)], seed=2)
    text = difference(before, after).headline
    assert text.startswith(f"Worse in 2 of 6 comparisons, most in {arms[4].name} (0.5")
    assert f"; better in 2 of 6 comparisons, most in {arms[2].name} (1.3" in text
    assert text.endswith("; no difference in 2 of 6 comparisons.")

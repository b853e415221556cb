"""What is said of a study: contrasts, bests, rates, costs, cautions and the headline, on studies made by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from benching import arm, histogram, result, run, samples, study

from ts_mps.bench.findings import Caution, Contrast, Summary
from ts_mps.bench.histogram import RELATIVE_ERROR
from ts_mps.bench.records import Arm, Run, Study
from ts_mps.bench.summary import summarise

ONE, FOUR, FOUR_ON = arm(1), arm(4), arm(4, mps=True)


def pair(summary: Summary, one: Arm, other: Arm) -> Contrast:
    found = [c for c in summary.contrasts if (c.arm, c.baseline) == (one.name, other.name)]
    assert len(found) == 1
    return found[0]


def cautions(summary: Summary, kind: str) -> list[Caution]:
    return [caution for caution in summary.cautions if caution.kind == kind]


def closed(one: Arm, throughputs: list[float], **fields: object) -> list[Run]:
    return [run(one, block, result(value, seed=block), **fields) for block, value in enumerate(throughputs)]


def of(runs: list[Run], *arms: Arm, **fields: object) -> Study:
    return study(runs=runs, arms=arms, **fields)


# Figures


def test_throughput_is_the_median_of_the_runs_with_its_interval() -> None:
    figures = summarise(of(closed(ONE, [90, 100, 110, 120, 130, 140]), ONE)).figures[0]
    assert figures.throughput.middle == 115
    assert (figures.throughput.low, figures.throughput.high, figures.throughput.runs) == (90, 140, 6)


def test_percentiles_are_those_of_all_latencies_together() -> None:
    fast, slow = list(np.linspace(1, 2, 500)), list(np.linspace(50, 400, 500))
    runs = [
        run(ONE, 0, result(50, histogram=histogram(fast))),
        run(ONE, 1, result(50, histogram=histogram(slow))),
    ]
    percentiles = dict(summarise(of(runs, ONE)).figures[0].percentiles)
    for percent, value in percentiles.items():
        assert value == pytest.approx(np.percentile([*fast, *slow], percent), rel=RELATIVE_ERROR)
    average = (np.percentile(fast, 99) + np.percentile(slow, 99)) / 2
    assert percentiles[99] > 1.5 * average


def test_goodput_counts_what_was_answered_within_the_objective() -> None:
    latencies = [10.0] * 300 + [90.0] * 700
    made = of([run(ONE, 0, result(100, histogram=histogram(latencies)))], ONE)
    goodput = summarise(made, objective_ms=50).figures[0].goodput
    assert goodput is not None
    assert goodput.middle == 30
    assert summarise(made).figures[0].goodput is None


def test_the_objective_is_the_studys_own_unless_another_is_given() -> None:
    made = of(closed(ONE, [100]), ONE, settings={"slo_ms": 1000.0})
    own, other = summarise(made).figures[0].goodput, summarise(made, objective_ms=0.001).figures[0].goodput
    assert own is not None
    assert other is not None
    assert (own.middle, other.middle) == (100, 0)


def test_a_study_read_back_from_its_file_says_the_same() -> None:
    made = study()
    back = Study.from_json(json.loads(json.dumps(made.as_json())))
    assert summarise(back, objective_ms=40) == summarise(made, objective_ms=40)


def test_gpu_figures_are_means_over_runs_and_the_most_memory() -> None:
    runs = [
        run(ONE, 0, samples=samples(20, count=2)),
        run(ONE, 1, samples=samples(80, count=20)),
        run(ONE, 2, samples=samples(None)),
    ]
    figures = summarise(of(runs, ONE)).figures[0]
    assert figures.gpu_utilisation == 50
    assert figures.gpu_memory == 8 << 30
    assert summarise(of([run(ONE, 0, samples=())], ONE)).figures[0].gpu_utilisation is None


# Contrasts


def test_mps_is_compared_with_the_same_workers_and_batch_without_it() -> None:
    summary = summarise(study([(ONE, 1000), (FOUR, 2000), (FOUR_ON, 3000)]))
    contrast = pair(summary, FOUR_ON, FOUR)
    assert contrast.verdict == "better"
    assert contrast.ratio.middle == pytest.approx(1.5, rel=0.02)
    assert contrast.ratio.low < 1.5 < contrast.ratio.high
    assert contrast.p == pytest.approx(2 / 2**8)
    assert summary.contrasts[0] == contrast


def test_a_thread_percentage_is_compared_with_mps_without_one_and_not_with_mps_off() -> None:
    half = arm(4, mps=True, thread_percentage=50.0)
    summary = summarise(study([(ONE, 1000), (FOUR, 2000), (FOUR_ON, 3000), (half, 3300)]))
    assert pair(summary, half, FOUR_ON).verdict == "better"
    assert not [c for c in summary.contrasts if (c.arm, c.baseline) == (half.name, FOUR.name)]


def test_every_arm_is_compared_once_with_the_baseline_and_no_op_arms_with_nothing() -> None:
    on, noop = arm(1, mps=True), arm(4, noop=True, device="cpu")
    summary = summarise(study([(ONE, 1000), (on, 900), (FOUR, 2000), (noop, 9000)]))
    assert [(c.arm, c.baseline) for c in summary.contrasts] == [(on.name, ONE.name), (FOUR.name, ONE.name)]
    assert all(noop.name not in (c.arm, c.baseline) for c in (*summary.contrasts, *summary.best))


def test_groups_engines_and_options_are_not_mixed() -> None:
    here, there = arm(2, group="A"), arm(2, mps=True, group="B")
    delayed = arm(2, mps=True, group="A", name="delayed", options={"max_batch_delay": "50"})
    stock = arm(2, mps=True, group="A", engine="torchserve")
    summary = summarise(study([(here, 100), (there, 100), (delayed, 100), (stock, 100)]))
    # Against the baseline of the group, but never as MPS on against off: these are not the same arms but for MPS.
    assert {(c.arm, c.baseline) for c in summary.contrasts} == {(delayed.name, here.name), (stock.name, here.name)}


def test_pairs_are_runs_of_one_block_that_both_count() -> None:
    off = closed(FOUR, [100, 100, 100, 100, 100, 100, 100])
    on = closed(FOUR_ON, [150, 150, 150, 150, 150, 150, 150])
    on[2] = run(FOUR_ON, 2, failure="It did not get ready.")
    off[5] = run(FOUR, 5, result(100, void="The generator fell behind."))
    contrast = pair(summarise(of([*off, *on], FOUR, FOUR_ON)), FOUR_ON, FOUR)
    assert contrast.ratio.runs == 5
    assert (contrast.verdict, contrast.p) == ("not decided", None)
    assert "6 pairs" in contrast.why


def test_a_repeated_run_of_a_block_is_used_where_the_first_failed() -> None:
    runs = [*closed(FOUR, [100] * 6), *closed(FOUR_ON, [150] * 6)]
    runs[6] = run(FOUR_ON, 0, failure="It did not get ready.")
    runs.append(run(FOUR_ON, 0, result(150)))
    assert pair(summarise(of(runs, FOUR, FOUR_ON)), FOUR_ON, FOUR).ratio.runs == 6


def test_open_loops_are_compared_by_p99_and_lower_is_better() -> None:
    def probe(one: Arm, block: int, ms: float) -> Run:
        return run(one, block, result(100, ms, kind="poisson", rate=100.0, seed=block))

    runs = [probe(one, block, ms) for block in range(6) for one, ms in ((FOUR, 20.0), (FOUR_ON, 10.0))]
    contrast = pair(summarise(of(runs, FOUR, FOUR_ON)), FOUR_ON, FOUR)
    assert (contrast.measure, contrast.kind, contrast.rate) == ("p99", "poisson", 100.0)
    assert contrast.ratio.middle == pytest.approx(0.5, rel=0.02)
    assert contrast.verdict == "better"
    assert "99th percentile" in contrast.why


def test_who_refuses_does_not_look_faster_than_who_serves() -> None:
    def probe(one: Arm, block: int, ms: float, refused: int) -> Run:
        return run(one, block, result(100, ms, kind="poisson", rate=100.0, seed=block, errors={"503": refused}))

    for refused, verdict in ((0, "better"), (5, "better"), (100, "worse")):
        runs = [probe(FOUR, block, 20.0, 0) for block in range(6)]
        runs += [probe(FOUR_ON, block, 10.0, refused) for block in range(6)]
        assert pair(summarise(of(runs, FOUR, FOUR_ON)), FOUR_ON, FOUR).verdict == verdict


def test_loads_of_different_rates_are_no_pairs() -> None:
    runs = [
        run(FOUR, 0, result(100, kind="poisson", rate=100.0)),
        run(FOUR_ON, 0, result(90, kind="poisson", rate=90.0)),
    ]
    assert summarise(of(runs, FOUR, FOUR_ON)).contrasts == ()


def test_a_loss_of_mps_is_listed_as_one() -> None:
    on = arm(1, mps=True)
    summary = summarise(study([(ONE, 1000), (on, 850), (FOUR, 2000), (FOUR_ON, 3000)]))
    assert [(loss.arm, loss.baseline) for loss in summary.losses] == [(on.name, ONE.name)]
    assert "does not pay" not in summary.headline


# Best against best


def test_the_best_with_mps_is_set_against_the_best_without_whatever_their_workers() -> None:
    two, eight_on = arm(2), arm(8, mps=True)
    summary = summarise(study([(ONE, 1000), (two, 2500), (FOUR, 2000), (FOUR_ON, 2200), (eight_on, 3000)]))
    best = summary.best[0]
    assert (best.arm, best.baseline) == (eight_on.name, two.name)
    assert best.ratio.middle == pytest.approx(1.2, rel=0.02)
    assert best.verdict == "better"


def test_picking_the_best_of_many_equal_arms_does_not_flatter_them() -> None:
    picked, naive = [], []
    for seed in range(12):
        many = [(arm(workers, mps=True), 1000.0) for workers in range(1, 13)]
        made = study([(arm(4), 1000.0), *many], noise=0.05, seed=seed, blocks=6)
        summary = summarise(made)
        picked.append(np.log(summary.best[0].ratio.middle))
        medians = {figures.arm: figures.throughput.middle for figures in summary.figures}
        naive.append(np.log(medians[summary.best[0].arm] / medians[arm(4).name]))
    assert np.mean(naive) > 0.02
    assert abs(np.mean(picked)) < 0.02


def test_engines_are_set_against_each_other_where_nothing_else_differs() -> None:
    arms = [
        arm(workers, mps=mps, engine=engine)
        for engine in ("litserve", "torchserve", "ts-mps")
        for workers, mps in ((1, False), (4, False), (4, True))
    ]
    rates = {"ts-mps": 1200, "torchserve": 1000, "litserve": 600}
    summary = summarise(study([(one, rates[one.engine] * one.workers) for one in arms]))
    for other, ratio in (("torchserve", 1.2), ("litserve", 2.0)):
        for workers, mps in ((1, False), (4, False), (4, True)):
            ours, theirs = (arm(workers, mps=mps, engine=engine) for engine in ("ts-mps", other))
            found = pair(summary, ours, theirs)
            assert found.verdict == "better" and found.ratio.middle == pytest.approx(ratio, rel=0.03)
    across = [c for c in summary.contrasts if "ts-mps" in c.arm and "ts-mps" not in c.baseline]
    assert len({(c.arm, c.baseline) for c in across}) == len(across)
    assert not [c for c in summary.contrasts if "torchserve" in c.arm and c.baseline == arm(4, engine="litserve").name]


def test_ts_mps_is_set_against_the_best_of_the_other_engines() -> None:
    stock, stock_on = arm(4, engine="torchserve"), arm(4, mps=True, engine="torchserve")
    made = study([(ONE, 1000), (FOUR_ON, 3000), (stock, 1500), (stock_on, 2000)])
    assert {(one.arm, one.baseline) for one in summarise(made).best} == {
        (FOUR_ON.name, ONE.name),
        (stock_on.name, stock.name),
        (FOUR_ON.name, stock.name),
        (FOUR_ON.name, stock_on.name),
    }


def test_the_gpu_is_set_against_the_cpu_with_the_cost_of_each() -> None:
    cpu = arm(8, device="cpu", name="8 workers, CPU")
    summary = summarise(study([(cpu, 100), (FOUR, 1000)], noise=0.0), prices={"gpu": 3.6, "cpu": 0.9})
    assert [(one.arm, one.baseline) for one in summary.best] == [(FOUR.name, cpu.name)]
    per_million = {cost.arm: cost.per_million for cost in summary.costs}
    # 3.6 an hour at 1,000 requests per second, which is 3.6 million an hour; and so on.
    assert per_million == {FOUR.name: pytest.approx(1.0), cpu.name: pytest.approx(2.5)}


# Prices, rates


def test_an_arm_may_have_a_price_of_its_own_and_a_price_for_nothing_is_refused() -> None:
    made = study([(ONE, 1000), (FOUR, 2000)], noise=0.0)
    assert [cost.per_hour for cost in summarise(made, prices={"gpu": 2.0, FOUR.name: 8.0}).costs] == [2.0, 8.0]
    with pytest.raises(ValueError, match="tpu"):
        summarise(made, prices={"tpu": 1.0})
    with pytest.raises(ValueError, match="above 0"):
        summarise(made, prices={"gpu": 0.0})


def test_the_largest_rate_that_held_lies_below_the_lowest_that_did_not() -> None:
    tried = [(100.0, 5.0), (200.0, 8.0), (300.0, 90.0), (400.0, 9.0)]
    runs = [run(FOUR, 0, result(rate, ms, kind="poisson", rate=rate)) for rate, ms in tried]
    found = summarise(of(runs, FOUR), objective_ms=50).rates
    assert [(one.arm, one.rate, one.broken, one.objective_ms) for one in found] == [(FOUR.name, 200.0, 300.0, 50)]
    assert summarise(of(runs, FOUR), objective_ms=0.1).rates[0].rate == 0
    assert summarise(of(runs, FOUR), objective_ms=5000).rates[0].broken is None
    assert summarise(of(runs, FOUR)).rates == ()


def test_a_rate_at_which_requests_are_refused_at_once_has_not_held() -> None:
    refused = result(95, 5.0, kind="poisson", rate=100.0, errors={"503": 50})
    answered = result(95, 5.0, kind="poisson", rate=100.0)
    rates = [summarise(of([run(ONE, 0, one)], ONE), objective_ms=50).rates[0].rate for one in (answered, refused)]
    assert rates == [100.0, 0.0]


def test_a_rate_that_the_generator_could_not_make_did_not_fail() -> None:
    def tried(rate: float, ms: float = 5.0, **fields: str) -> Run:
        return run(FOUR, 0, result(rate, ms, kind="poisson", rate=rate, **fields))

    void = {"void": "The generator fell behind its plan."}
    (found,) = summarise(
        of([tried(100), tried(200), tried(300, **void), tried(400, **void)], FOUR), objective_ms=50
    ).rates
    assert (found.rate, found.broken, found.behind) == (200.0, None, 300.0)
    (found,) = summarise(of([tried(100), tried(200, **void), tried(150, 90.0)], FOUR), objective_ms=50).rates
    assert (found.rate, found.broken, found.behind) == (100.0, 150.0, None), (
        "what is above a broken rate does not matter"
    )
    (found,) = summarise(of([tried(100, **void)], FOUR), objective_ms=50).rates
    assert (found.rate, found.broken, found.behind) == (0.0, None, 100.0)
    dead = run(FOUR, 0, result(0, kind="poisson", rate=100.0, sent=900), failure="None of 900 requests was answered.")
    (found,) = summarise(of([dead], FOUR), objective_ms=50).rates
    assert (found.rate, found.broken) == (0.0, 100.0)


# Cautions and bottlenecks


def test_a_healthy_study_has_no_cautions() -> None:
    assert summarise(study()).cautions == ()


def test_too_few_pairs_are_told_once() -> None:
    told = cautions(summarise(study(blocks=3)), "too few pairs")
    assert len(told) == 1
    assert "3 of 3 comparisons stand on fewer than 6 pairs" in told[0].text


def test_runs_that_differ_much_are_unstable() -> None:
    told = cautions(summarise(of(closed(ONE, [1000, 1200, 800, 1100]), ONE)), "unstable")
    assert [one.arm for one in told] == [ONE.name]
    assert "5 %" in told[0].text
    assert not cautions(summarise(of(closed(ONE, [1000, 1010, 990, 1000]), ONE)), "unstable")


def test_runs_of_few_batches_are_coarse() -> None:
    sixteen = arm(1, 16)
    (told,) = cautions(summarise(of([run(sixteen, 0, result(9.6))], sixteen)), "coarse")
    assert "about 96 answers, of which 16 may come at once: 17 %" in told.text
    assert not cautions(summarise(of([run(sixteen, 0, result(960))], sixteen)), "coarse")
    open_loop = of([run(sixteen, 0, result(9.6, kind="poisson", rate=9.6))], sixteen)
    assert not cautions(summarise(open_loop), "coarse")


@pytest.mark.parametrize(
    ("environment", "engine", "told"),
    [
        (["OMP_NUM_THREADS=3"], "ts-mps", ""),
        (["OMP_NUM_THREADS=4"], "ts-mps", "compute with 4 threads each on 12 cores, as OMP_NUM_THREADS is '4'"),
        (["OMP_NUM_THREADS=4"], "ts-mps", "Without it ts-mps divides the cores"),
        (["LD_X=a=b", "OMP_NUM_THREADS=4,1"], "torchserve", "OMP_NUM_THREADS=3 would divide the cores"),
        ([], "torchserve", "12 threads each on 12 cores, as OMP_NUM_THREADS is not set"),
        ([], "ts-mps", ""),
        (["OMP_NUM_THREADS="], "ts-mps", "12 threads each on 12 cores, as OMP_NUM_THREADS is ''"),
        (["OMP_NUM_THREADS=many"], "ts-mps", "12 threads each on 12 cores, as OMP_NUM_THREADS is 'many'"),
        (["OMP_NUM_THREADS=²"], "torchserve", "OMP_NUM_THREADS=3 would divide the cores"),
        (["OMP_NUM_THREADS=0"], "torchserve", "12 threads each"),
        (["OMP_NUM_THREADS=1"], "torchserve", ""),
        (None, "torchserve", ""),
    ],
)
def test_more_threads_than_cores_are_told(environment: list[str] | None, engine: str, told: str) -> None:
    four, noop = arm(4, engine=engine), arm(4, engine=engine, noop=True)
    runs = [*closed(four, [1000, 1000]), *closed(noop, [9000, 9000])]
    open_loop = [run(four, block, result(100, kind="poisson", rate=100)) for block in (0, 1)]
    made = of([*runs, *open_loop], four, noop, machine={**study().machine, "environment": environment})
    found = cautions(summarise(made), "threads")
    assert [(caution.arm, told in caution.text) for caution in found] == [(four.name, True)] * bool(told)


def test_more_workers_than_cores_are_no_matter_of_threads() -> None:
    many = arm(24, engine="torchserve")
    machine = {**study().machine, "environment": ["OMP_NUM_THREADS=1"]}
    assert not cautions(summarise(of(closed(many, [1000, 1000]), many, machine=machine)), "threads")


def test_a_quota_below_the_cores_does_not_keep_server_and_generator_apart() -> None:
    made = study(machine={**study().machine, "usable_cores": 64, "cpu_quota": 16.0})
    (told,) = cautions(summarise(made), "starved of cores")
    assert told.arm == "" and "16 cores' time" in told.text and "given 64 cores" in told.text
    for quota in (64.0, None):
        assert summarise(replace(made, machine={**made.machine, "cpu_quota": quota})).cautions == ()


def test_throttled_clocks_are_told_with_their_reasons() -> None:
    held = [run(ONE, block, samples=samples(throttled=["power cap"])) for block in range(2)]
    told = cautions(summarise(of([*held, run(ONE, 2)], ONE)), "throttled")
    assert "67 % of the samples" in told[0].text
    assert "power cap" in told[0].text


def test_a_generator_near_its_limit_is_told_and_is_the_bottleneck() -> None:
    made = of([run(ONE, 0, result(generator_cores=3.2, generator_limit=4))], ONE)
    assert summarise(made).figures[0].bottleneck == "generator"
    assert "80 %" in cautions(summarise(made), "generator")[0].text
    below = of([run(ONE, 0, result(generator_cores=3.1, generator_limit=4))], ONE)
    assert not cautions(summarise(below), "generator")


def test_a_server_without_a_free_core_is_told_and_is_the_bottleneck() -> None:
    made = of([run(ONE, 0, frontend_cores=4.0, worker_cores=7.0, server_limit=12)], ONE)
    assert summarise(made).figures[0].bottleneck == "host cores"
    assert "92 %" in cautions(summarise(made), "starved of cores")[0].text


def test_an_arm_near_the_no_op_ceiling_measures_the_frontend() -> None:
    noop = arm(4, noop=True, device="cpu")
    summary = summarise(study([(ONE, 1000), (FOUR, 9500), (noop, 10000)], noise=0.0))
    assert {figures.arm: figures.bottleneck for figures in summary.figures}[FOUR.name] == "frontend"
    assert [caution.arm for caution in cautions(summary, "frontend")] == [FOUR.name]
    assert "95 %" in cautions(summary, "frontend")[0].text


def test_a_gpu_without_a_gap_is_the_bottleneck() -> None:
    assert summarise(of([run(ONE, 0, samples=samples(99))], ONE)).figures[0].bottleneck == "gpu"


def test_failed_runs_are_told_with_their_reasons_and_do_not_count() -> None:
    runs = [*closed(ONE, [100] * 2), *(run(ONE, block, failure="It did not get ready.") for block in (2, 3))]
    summary = summarise(of(runs, ONE))
    assert (summary.figures[0].failed, summary.figures[0].throughput.runs) == (2, 2)
    text = cautions(summary, "failed runs")[0].text
    assert text.startswith("2 of 4 runs")
    assert "It did not get ready. (2 times)" in text


def test_a_run_that_answered_nothing_failed() -> None:
    dead = run(ONE, 1, result(0, errors={"507": 900}))
    summary = summarise(of([*closed(ONE, [100]), dead], ONE))
    assert (summary.figures[0].failed, summary.figures[0].throughput.middle) == (1, 100)
    assert "None of its 900 requests was answered (507: first 507)" in cautions(summary, "failed runs")[0].text


def test_errors_are_told_by_kind() -> None:
    summary = summarise(of([run(ONE, 0, result(90, errors={"503": 80, "timeout": 20}))], ONE))
    assert summary.figures[0].errors == pytest.approx(0.1)
    assert "80 of 503 and 20 of timeout" in cautions(summary, "errors")[0].text


def test_what_was_broken_off_and_never_run_is_told() -> None:
    made = study([(ONE, 100)], incomplete="Ctrl-C in block 8.")
    texts = [one.text for one in cautions(summarise(replace(made, arms=(ONE, FOUR))), "incomplete")]
    assert texts == ["The study was broken off: Ctrl-C in block 8.", f"Never run: {FOUR.name}."]


# The headline


@pytest.mark.parametrize(
    ("on", "start"),
    [
        (3000, "MPS pays here: the best arm with it (4 workers x 8, MPS on; 3,000 requests/s) answers 1.50 (95 % "),
        (2000, "MPS makes no difference here: "),
        (1600, "MPS does not pay here: "),
        (2070, "Whether MPS pays here is not decided at a margin of 3 %: "),
    ],
)
def test_the_headline_answers_first(on: float, start: str) -> None:
    shares = np.linspace(0.985, 1.015, 8)
    runs = [*closed(FOUR, [2000] * 8), *closed(FOUR_ON, (on * shares).tolist())]
    headline = summarise(of(runs, FOUR, FOUR_ON)).headline
    assert headline.startswith(start)
    assert "8 pairs" in headline
    assert "95 % interval" in headline


def test_the_headline_says_what_limited_its_two_arms() -> None:
    noop = arm(4, noop=True, device="cpu")
    same = study([(FOUR, 9600), (FOUR_ON, 9700), (noop, 10_000)])
    headline = summarise(same).headline
    assert headline.startswith("MPS makes no difference here: ")
    assert (
        f"The frontend limited {FOUR_ON.name} and {FOUR.name}: without that the ratio may be another one." in headline
    )
    starved = [*closed(FOUR, [1000] * 6), *closed(FOUR_ON, [1500] * 6, worker_cores=11.0)]
    headline = summarise(of(starved, FOUR, FOUR_ON)).headline
    assert f"The host's cores limited {FOUR_ON.name}: without" in headline
    assert "limited" not in summarise(study()).headline


def test_the_headline_says_that_its_arms_failed_to_answer() -> None:
    runs = closed(FOUR, [1000] * 6)
    for part, told in ((20, False), (400, True)):
        bad = [run(FOUR_ON, block, result(1500, errors={"507": part})) for block in range(6)]
        headline = summarise(of([*runs, *bad], FOUR, FOUR_ON)).headline
        assert headline.startswith("MPS pays here")
        assert ("2.6 % of the requests to 4 workers x 8, MPS on had no good answer." in headline) == told


def test_with_too_few_pairs_the_headline_claims_nothing() -> None:
    headline = summarise(study(blocks=5)).headline
    assert headline.startswith("Whether MPS pays here is not decided: a claim needs 6 pairs of runs. In 5 pairs")
    assert "MPS pays here:" not in headline


def test_the_headline_counts_where_only_mps_differs() -> None:
    on = arm(1, mps=True)
    headline = summarise(study([(ONE, 1000), (on, 850), (FOUR, 2000), (FOUR_ON, 3000)])).headline
    assert "Of 2 comparisons at the same workers and batch size, MPS is better in 1 and is worse in 1." in headline


def test_without_an_arm_with_mps_the_headline_says_what_it_can() -> None:
    cpus = [(arm(n, device="cpu", name=f"{n} x 8, CPU"), 100.0 * n) for n in (1, 2)]
    headline = summarise(study(cpus)).headline
    assert headline.startswith("This study does not say whether MPS pays: it has no arm on a GPU with MPS on.")
    assert "The fastest arm is 2 x 8, CPU" in headline
    assert "2 x 8, CPU is better than 1 x 8, CPU" in headline


def test_where_all_runs_with_mps_failed_the_headline_says_why() -> None:
    runs = [*closed(FOUR, [100] * 6), *(run(FOUR_ON, block, failure="No worker was a client.") for block in range(6))]
    headline = summarise(of(runs, FOUR, FOUR_ON)).headline
    assert "no closed-loop run with MPS on counts (No worker was a client)" in headline


def test_runs_without_a_common_block_give_no_answer() -> None:
    runs = [run(FOUR, 0), run(FOUR_ON, 1)]
    assert "in one block both with MPS on and with MPS off" in summarise(of(runs, FOUR, FOUR_ON)).headline


def test_several_groups_are_answered_together() -> None:
    made = study(
        [
            (arm(2, mps=mps, group=group), 1000 * (factor if mps else 1))
            for group, factor in (("0.5B", 1.8), ("3B", 1.0), ("7B", 0.8))
            for mps in (False, True)
        ]
    )
    headline = summarise(replace(made, arms=(*made.arms, arm(2, group="14B")))).headline
    assert headline.startswith("MPS pays for 0.5B: 1.8")
    assert "MPS makes no difference for 3B: " in headline
    assert "MPS does not pay for 7B: 0." in headline
    assert "there is no answer for 14B" in headline


def test_a_study_in_which_nothing_counts_says_so() -> None:
    assert summarise(study(blocks=0, incomplete="Ctrl-C.")).headline == "Nothing was measured. Ctrl-C."
    only = of([run(ONE, block, failure="The port is taken.") for block in range(2)], ONE)
    summary = summarise(only)
    assert summary.headline == "Nothing was measured: none of 2 runs counts. The first: The port is taken."
    assert summary.figures == summary.contrasts == summary.best == ()


def test_a_margin_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="margin"):
        summarise(study(), margin=0.0)

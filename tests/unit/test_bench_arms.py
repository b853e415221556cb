"""Which arms a comparison has, and which of them is the baseline."""

from __future__ import annotations

from benching import result, run

from ts_mps.bench.arms import Wish, baseline_first, best_arms, make_arms, most_best_arms


def names(wish: Wish) -> list[str]:
    return [arm.name for arm in make_arms(wish)]


def test_every_question_has_its_arms():
    wish = Wish(workers=(4, 2), batch_sizes=(8,), percentages=(50.0,), ceiling=True)
    assert names(wish) == [
        "1 worker x 8, MPS off",
        "2 workers x 8, MPS off",
        "2 workers x 8, MPS on",
        "2 workers x 8, MPS on at 50 %",
        "4 workers x 8, MPS off",
        "4 workers x 8, MPS on",
        "4 workers x 8, MPS on at 50 %",
        "no-op, 1 worker x 8",
        "no-op, 2 workers x 8",
        "no-op, 4 workers x 8",
    ]


def test_one_worker_is_the_baseline_once_and_shows_what_mps_itself_costs():
    arms = make_arms(Wish(workers=(1, 2), batch_sizes=(8, 1)))
    assert [arm.batch_size for arm in arms[:2]] == [1, 8]
    assert len({arm.name for arm in arms}) == len(arms) == 2 * 4
    assert [arm.workers for arm in arms if arm.mps] == [1, 1, 2, 2]
    for arm in arms:
        twins = [one for one in arms if (one.workers, one.batch_size, one.mps) == (arm.workers, arm.batch_size, False)]
        assert len(twins) == 1, "every arm with MPS has one without"


def test_without_a_gpu_arms_differ_in_workers_only():
    arms = make_arms(Wish(workers=(1, 2), batch_sizes=(4,), percentages=(50.0,), device="cpu"))
    assert [arm.name for arm in arms] == ["1 worker x 4, CPU", "2 workers x 4, CPU"]
    assert not any(arm.mps for arm in arms) and {arm.device for arm in arms} == {"cpu"}


def test_options_and_engine_are_every_arms():
    wish = Wish(workers=(2,), batch_sizes=(4,), engines=("torchserve",), options={"max_batch_delay": "7"}, ceiling=True)
    for arm in make_arms(wish):
        assert arm.engine == "torchserve" and arm.options == {"max_batch_delay": "7"} and "torchserve" in arm.name
        assert not arm.noop or (arm.device, arm.mps) == ("cpu", False)


def test_the_baseline_is_one_worker_at_its_best_batch():
    arms = make_arms(Wish(workers=(2,), batch_sizes=(1, 8), ceiling=True))
    rates = {"1 worker x 1, MPS off": 100.0, "1 worker x 8, MPS off": 300.0, "2 workers x 8, MPS on": 900.0}
    runs = [run(name, measured=result(throughput=rate)) for name, rate in rates.items()]
    runs.append(run("1 worker x 1, MPS off", measured=result(throughput=9999.0), failure="It died."))
    assert baseline_first(arms, runs)[0].name == "1 worker x 8, MPS off"
    assert set(map(str, baseline_first(arms, runs))) == set(map(str, arms))
    assert baseline_first(arms, []) == arms
    assert [arm.name for arm in best_arms(arms, runs)] == ["1 worker x 8, MPS off", "2 workers x 8, MPS on"]
    assert [arm.name for arm in best_arms(arms, runs[:2])] == ["1 worker x 8, MPS off"]


def test_engines_stand_in_one_study():
    wish = Wish(workers=(2,), batch_sizes=(4,), engines=("ts-mps", "torchserve", "litserve"), ceiling=True)
    arms = make_arms(wish)
    assert len({arm.name for arm in arms}) == len(arms) == 3 * 3 + 2 * 2
    assert [arm.name for arm in arms if arm.engine == "litserve"] == [
        "litserve: 1 worker x 4, MPS off",
        "litserve: 2 workers x 4, MPS off",
        "litserve: 2 workers x 4, MPS on",
    ], "TorchServe's no-op handler says nothing of another frontend"
    runs = [run(arm, measured=result(throughput=100.0 + place)) for place, arm in enumerate(arms)]
    assert baseline_first(arms, runs)[0].name == "1 worker x 4, MPS off", "the first engine's, though it is slower"
    best = [arm.name for arm in best_arms(arms, runs)]
    assert best == [
        f"{engine}{name}"
        for engine in ("", "torchserve: ", "litserve: ")
        for name in ("2 workers x 4, MPS off", "2 workers x 4, MPS on")
    ]
    assert most_best_arms(arms) == len(best)

"""What a plan predicts, where the host's cores have a say."""

import pytest
from planning import facts, fixed, gpu, model, profile

from ts_mps.plan.facts import HostFacts
from ts_mps.plan.planner import make_plan
from ts_mps.plan.predict import FRONTEND_SECONDS


def predicted(models, cores, mps="on", **host):
    plan = make_plan(facts(models, [gpu()], HostFacts(tuple(range(cores)), **host), mps=mps))
    return {one.name: one.requests_per_second for one in plan.models}, plan.warnings


def served(name, rate, workers=4, **more):
    """A model of so many workers that make ``rate`` requests per second together; batches of 8."""
    return model(name, fixed(workers), profile=profile({workers: rate}, **more))


@pytest.mark.parametrize(
    ("gpu_ms", "left"),
    [
        (None, 0.5),  # nothing traced: each is taken to fill the GPU
        (1.6, 1.0),  # 400/s x 0.2 ms is 8 % of the GPU's time
        (12.0, 1 / 1.2),  # 60 % each
        (80.0, 0.5),  # more than all of it, side by side: at its highest rate a model uses all of the GPU at most
    ],
)
def test_models_that_leave_the_gpu_idle_do_not_hinder_each_other(gpu_ms, left):
    rates, _ = predicted([served(name, 400, gpu_ms=gpu_ms) for name in "ab"], cores=64)
    assert rates == {"a": pytest.approx(400 * left), "b": pytest.approx(400 * left)}


def test_a_worker_computes_on_as_many_cores_as_it_has_threads():
    # 8 requests take 24 ms of cores: with one thread, a worker makes 333/s at most.
    one = served("a", 2000, cpu_ms=24.0)
    rates, warnings = predicted([one], cores=7)
    assert rates["a"] == pytest.approx(4 * 1 / 0.003)
    assert warnings == (
        "a: each worker gets 1 of 7 cores, with which its workers make 1,333/s in place of 2,000/s. Plan fewer "
        "workers, or give the host more cores.",
    )
    rates, warnings = predicted([one], cores=8)
    assert rates["a"] == pytest.approx(2000) and warnings == ()


def test_threads_that_the_user_set_are_no_bound():
    rates, _ = predicted([served("a", 2000, cpu_ms=24.0)], cores=7, set_threads=False)
    assert rates["a"] == 2000


def test_workers_and_frontend_share_the_cores():
    # 8 requests take 8 ms of cores, so 4,000/s keep 4 busy, and the frontend 0.8.
    rates, warnings = predicted([served("a", 4000, cpu_ms=8.0)], cores=4)
    busy = 4000 * (0.001 + FRONTEND_SECONDS)
    assert rates["a"] == pytest.approx(4000 * 4 / busy)
    assert warnings == (
        "Workers and frontend would keep 5 cores busy, and there are 4: they carry 83% of the throughput that the GPUs "
        "would make.",
    )


def test_a_profile_of_the_cpu_predicts_on_the_cpu():
    one = model("a", fixed(2), profile=profile(off={1: 50, 2: 90}, gpu="CPU"), on_gpu=False)
    plan = make_plan(facts([one], [gpu()]))
    assert plan.models[0].requests_per_second == 90
    other = model("a", fixed(2), profile=profile(off={1: 50, 2: 90}), on_gpu=False)
    assert make_plan(facts([other], [gpu()])).models[0].requests_per_second is None

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import GIB, facts, fixed, gpu, model

from ts_mps.plan.cores import Party, divide
from ts_mps.plan.facts import Policy
from ts_mps.plan.planner import make_plan
from ts_mps.plan.share import granted_sms, memory_limit, percentage_of


@pytest.mark.parametrize(
    ("percentage", "sms"), [(100, 132), (75, 98), (50, 66), (33.33, 42), (25, 32), (10, 12), (1, 8), (0.5, 8)]
)
def test_sms_are_rounded_down_to_whole_clusters(percentage, sms):
    assert granted_sms(132, percentage) == sms


def test_sms_of_an_unknown_gpu_are_unknown():
    assert granted_sms(0, 50) == 0


@pytest.mark.parametrize(
    ("policy", "workers", "percentage"),
    [
        (Policy(), 4, None),
        (Policy(percentages="even"), 1, None),
        (Policy(percentages="even"), 3, 33.33),
        (Policy(percentages="overlap"), 2, None),
        (Policy(percentages="overlap"), 3, 66.66),
        (Policy(percentages="fixed", percentage=40), 3, 40),
    ],
)
def test_policies(policy, workers, percentage):
    assert percentage_of(model(), policy, workers) == percentage
    assert percentage_of(model(thread_percentage=7), policy, workers) == 7, "a model's own wins"


@given(st.integers(1, 60))
def test_even_shares_never_exceed_the_gpu(workers):
    share = percentage_of(model(), Policy(percentages="even"), workers) or 100
    assert 99 < share * workers <= 100


def test_a_memory_limit_is_whole_mib_rounded_up():
    assert memory_limit(None) is None
    assert memory_limit(4 * GIB) == "4096M"
    assert memory_limit(4 * GIB + 1) == "4097M"


def test_shares_reach_the_slots_under_mps_only():
    limited = model("a", workers=fixed(2), memory_limit=3 * GIB, priority=1)
    other = model("b", workers=fixed(2), thread_percentage=60)
    on = make_plan(facts([limited, other], mps="on", percentages="even"))
    assert [slot.thread_percentage for slot in on.slots] == [25, 25, 60, 60]
    assert [slot.sms for slot in on.slots] == [32, 32, 78, 78]
    assert [slot.memory_limit for slot in on.slots] == ["3072M", "3072M", None, None]
    assert [slot.priority for slot in on.slots] == [1, 1, None, None]
    assert "25 % of the threads (even: 100 / n with n = 4 workers" in on.slots[0].why
    off = make_plan(facts([limited, other], mps="off", percentages="even"))
    assert {(slot.thread_percentage, slot.memory_limit, slot.priority) for slot in off.slots} == {(None, None, None)}
    assert off.gpus[0].cap is None
    assert on.gpus[0].cap == gpu().cap


parties = st.lists(st.builds(Party, st.floats(0.1, 10), st.integers(0, 4), st.integers(4, 12)), min_size=1, max_size=4)


@given(parties, st.integers(0, 40))
def test_more_cores_never_mean_fewer_workers_for_anybody(some, workers):
    less, more = divide(workers, some), divide(workers + 1, some)
    assert all(one <= other for one, other in zip(less, more, strict=True))
    assert all(party.least <= given <= party.most for party, given in zip(some, less, strict=True))
    assert sum(less) <= max(workers, sum(party.least for party in some))

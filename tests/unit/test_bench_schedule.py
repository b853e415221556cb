"""The order of a study's runs."""

from __future__ import annotations

from collections import Counter

from benching import run
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.bench.schedule import Turn, due, make_schedule

ARMS = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=6, unique=True)


@given(ARMS, st.integers(1, 8), st.integers(0, 99))
def test_every_block_holds_every_arm_once(arms, blocks, seed):
    turns = make_schedule(arms, blocks, seed)
    assert Counter((turn.block, turn.arm) for turn in turns) == {(b, a): 1 for b in range(blocks) for a in arms}
    assert [(turn.block, turn.position) for turn in turns] == [(b, p) for b in range(blocks) for p in range(len(arms))]


@given(ARMS, st.integers(1, 8), st.integers(0, 99))
def test_the_order_depends_on_names_and_seed_alone(arms, blocks, seed):
    assert make_schedule(arms, blocks, seed) == make_schedule(arms[::-1], blocks, seed)
    longer = make_schedule(arms, blocks + 1, seed)
    assert longer[: blocks * len(arms)] == make_schedule(arms, blocks, seed)


def test_orders_differ_between_blocks_and_seeds():
    orders = {tuple(turn.arm for turn in make_schedule("abcdef", 1, seed)) for seed in range(50)}
    assert len(orders) > 40
    turns = make_schedule("abcdef", 50, 0)
    firsts = Counter(turn.arm for turn in turns if turn.position == 0)
    assert set(firsts) == set("abcdef"), "no arm always has the same turn"


def test_what_failed_has_a_second_turn_at_the_end_of_its_block_and_no_third():
    turns = make_schedule("abc", 2, 0)
    failed, good = run(turns[0].arm, 0, failure="It died."), run(turns[4].arm, 1)
    again = Turn(0, 3, turns[0].arm)
    assert due(turns, [failed, good]) == (turns[1], turns[2], again, turns[3], turns[5])
    assert due(turns, [failed, failed, good]) == (turns[1], turns[2], turns[3], turns[5])
    assert due(turns, [failed, run(turns[0].arm, 0), good]) == (turns[1], turns[2], turns[3], turns[5])


@given(ARMS, st.integers(1, 4), st.randoms())
def test_every_turn_is_due_until_it_was_made(arms, blocks, random):
    schedule, runs = make_schedule(arms, blocks, 1), []
    while left := due(schedule, runs):
        turn = left[0]
        runs.append(run(turn.arm, turn.block, failure=random.choice(("", "It died.")), position=turn.position))
    tries = Counter((one.block, one.arm) for one in runs)
    assert tries.keys() == {(turn.block, turn.arm) for turn in schedule}
    counting = Counter((one.block, one.arm) for one in runs if one.counts)
    assert all(tries[key] == 2 or counting[key] == 1 for key in tries) and max(counting.values(), default=0) <= 1
    assert [one.block for one in runs] == sorted(one.block for one in runs)

"""The order of a study's runs."""

from __future__ import annotations

from collections import Counter

from benching import run
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.bench.schedule import make_schedule, missing

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


def test_what_failed_is_not_missing_and_the_rest_keeps_its_order():
    turns = make_schedule("abc", 2, 0)
    done = [run(turns[0].arm, turns[0].block, failure="It died."), run(turns[4].arm, turns[4].block)]
    assert missing(turns, done) == (turns[1], turns[2], turns[3], turns[5])

"""Which arm is run when: blocks that each hold every arm once, in an order of their own."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ts_mps.bench.records import Run


@dataclass(frozen=True)
class Turn:
    """One run that is to be made.

    Attributes:
        block: Number of the block, from 0.
        position: Its turn within the block, from 0.
        arm: Name of the arm.
    """

    block: int
    position: int
    arm: str


def make_schedule(arms: Iterable[str], blocks: int, seed: int) -> tuple[Turn, ...]:
    """Every arm once in each block, in an order that is drawn for each block from the seed.

    A machine drifts (clocks, temperature, neighbours). Within a block the arms meet it at nearly the same time, and the
    drawn order keeps any arm from always having the warmer turn. The order depends on the names alone, not on the order
    in which they are given, so that a study whose arms were put in another order is gone on with as it was planned.

    Args:
        arms: Names of the arms, each once.
        blocks: How many blocks, at least 1.
        seed: Of the orders; Python's ``random.Random.shuffle`` of one seed is the same on every machine.
    """
    turns: list[Turn] = []
    names = sorted(arms)
    for block in range(blocks):
        order = list(names)
        # A seed of its own for each block, so that more blocks leave the earlier ones as they are.
        random.Random(f"{seed}/{block}").shuffle(order)
        turns += [Turn(block, position, name) for position, name in enumerate(order)]
    return tuple(turns)


def missing(schedule: Sequence[Turn], runs: Iterable[Run]) -> tuple[Turn, ...]:
    """The turns of which there is no run yet, a failed one included, in their order."""
    done = {(run.block, run.arm) for run in runs}
    return tuple(turn for turn in schedule if (turn.block, turn.arm) not in done)

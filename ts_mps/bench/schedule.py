"""Which arm is run when: blocks that each hold every arm once, in an order of their own."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ts_mps.bench.records import Run


@dataclass(frozen=True)
class Turn:
    """One run that is to be made.

    Attributes:
        block: Number of the block, from 0.
        position: Its turn within the block, from 0; second turns come after all first ones.
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


def due(schedule: Sequence[Turn], runs: Iterable[Run]) -> tuple[Turn, ...]:
    """The turns that are left, in their order.

    A run that does not count gets one more turn, after the others of its block: six blocks are just enough for a claim,
    and whether a run counts does not depend on its figures.
    """
    made: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        made.setdefault((run.block, run.arm), []).append(run)
    left: list[Turn] = []
    for _, same in groupby(schedule, key=lambda turn: turn.block):
        block = tuple(same)
        tries = [made.get((turn.block, turn.arm), []) for turn in block]
        left += [turn for turn, tried in zip(block, tries, strict=True) if not tried]
        left += [
            replace(turn, position=turn.position + len(block))
            for turn, tried in zip(block, tries, strict=True)
            if len(tried) == 1 and not tried[0].counts
        ]
    return tuple(left)

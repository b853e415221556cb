"""The host's cores divided between server and generator.

A generator that shares cores with the server slows it down by what it costs itself, and the arm that answers most is
slowed down most. So both are pinned to cores of their own.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ts_mps.errors import PreflightError

_TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Division:
    """Who runs where; the two are disjoint, and neither is empty.

    Attributes:
        server: Cores of TorchServe's frontend and of the workers, ascending.
        generator: Cores of the load generator, ascending.
    """

    server: tuple[int, ...]
    generator: tuple[int, ...]


def divide(
    usable: Collection[int],
    generator: int | None = None,
    *,
    near: Collection[int] = (),
    siblings: Iterable[Collection[int]] = (),
) -> Division:
    """Give the generator its cores: far from the GPU first, and hardware threads of one core to one side.

    Args:
        usable: Cores that this process may use.
        generator: How many the generator gets; None for a quarter, at least one.
        near: Cores near the GPU, which its workers should have.
        siblings: Sets of hardware threads that share a core.

    Raises:
        PreflightError: There are fewer than two cores, or the generator would leave none for the server.
    """
    if len(usable) < 2:
        raise PreflightError(
            f"This process may use {len(usable)} core, and server and generator each need one of their own.",
            "Give it at least two cores.",
        )
    wanted = max(1, len(usable) // 4) if generator is None else generator
    if wanted >= len(usable):
        raise PreflightError(
            f"--generator-cores {wanted} leaves no core of {len(usable)} for the server.",
            f"Give the generator at most {len(usable) - 1}.",
        )
    group = {core: core for core in usable}
    for together in siblings:
        group.update(dict.fromkeys(together, min(together)))
    # Far from the GPU first; then from the top, as interrupts and other people's processes gather at the bottom.
    order = sorted(usable, key=lambda core: (core in near, -group[core], -core))
    return Division(tuple(sorted(order[wanted:])), tuple(sorted(order[:wanted])))


def usable_cores() -> tuple[int, ...]:
    """Cores that this process may use, ascending."""
    return tuple(sorted(os.sched_getaffinity(0)))


def core_siblings() -> tuple[tuple[int, ...], ...]:
    """Hardware threads that share a core, as the kernel tells; empty where it does not."""
    found = set()
    for file in _TOPOLOGY.glob("cpu[0-9]*/topology/thread_siblings_list"):
        with suppress(OSError, ValueError):
            found.add(core_list(file.read_text().strip()))
    return tuple(sorted(found))


def core_list(text: str) -> tuple[int, ...]:
    """The cores of a kernel's list such as "0-3,8".

    Raises:
        ValueError: It is no such list.
    """
    cores: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores += range(int(first), int(last or first) + 1)
    return tuple(cores)


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Let this thread, and with it every process that it starts inside, run on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)

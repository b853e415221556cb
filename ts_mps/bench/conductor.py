"""The loop of a study: turn after turn, each kept as soon as it is there, and the search for rates after them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ts_mps.bench.arms import best_arms
from ts_mps.bench.rates import outcome, search
from ts_mps.bench.records import Arm, Load, Run
from ts_mps.bench.schedule import Turn, due, make_schedule
from ts_mps.bench.study import StudyFile

#: Failures of an arm in a row after which it is left out: a third try costs minutes and tells nothing new.
_MOST_FAILURES = 2


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        done: Runs made, those of earlier calls included.
        planned: Runs in all, as far as is known.
        seconds_left: For the runs that are left, at the mean time of this call's runs; None before the first.
        run: What was just measured; None before the first run of this call.
        next: Name of the arm whose turn is next; empty after the last.
    """

    done: int
    planned: int
    seconds_left: float | None
    run: Run | None
    next: str


@dataclass(frozen=True)
class Search:
    """How the largest rate is looked for.

    Attributes:
        objective_ms: The 99th percentile that must hold.
        steps: Rates tried on each arm.
    """

    objective_ms: float
    steps: int = 6


class Conductor:
    """Runs a study.

    Args:
        file: The study, which may hold runs already.
        measure: Makes one run; lets KeyboardInterrupt through.
        report: Told before the first run and after each.
    """

    def __init__(
        self,
        file: StudyFile,
        measure: Callable[[Turn, Arm, Load], Run],
        report: Callable[[Progress], None],
    ) -> None:
        self._file, self._measure, self._report = file, measure, report
        self._failures: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._spent: list[float] = []
        self._last: Run | None = None

    def blocks(self, load: Callable[[int], Load], after: int = 0) -> None:
        """Run every turn that is left; one whose run does not count gets a second one in its block.

        Args:
            load: The load of a block, by its number.
            after: Runs that are planned after the blocks, for the time left.

        Raises:
            TsMpsError: The file cannot be written, or a server cannot be stopped.
            KeyboardInterrupt: What was measured until then is kept.
        """
        study = self._file.study
        schedule = make_schedule([arm.name for arm in study.arms], study.blocks, study.seed)
        while turns := [turn for turn in due(schedule, self._file.study.runs) if turn.arm not in self._reasons]:
            self._tell(turns[0].arm, len(turns) + after)
            self._run(turns[0], load(turns[0].block))
        self._tell("", after)

    def rates(self, load: Callable[[float], Load], wish: Search) -> None:
        """Look for the largest rate of arrivals at which the best arm without MPS, and the best with it, hold p99.

        Where there are several engines or devices, each has these two. All searches go on by turns. Each try is a run
        of its own in a block of its own, which the arms share only where they try the same rate: such runs may be
        compared, others not.

        Args:
            load: The load of a rate.
            wish: What has to hold.

        Raises:
            TsMpsError: As :meth:`blocks`.
            KeyboardInterrupt: As :meth:`blocks`.
        """
        study = self._file.study
        arms = best_arms(study.arms, study.runs)
        searches = {arm.name: search(_throughput(study.runs, arm.name), wish.steps) for arm in arms}
        rates = {name: next(one) for name, one in searches.items()}
        for step in range(wish.steps):
            for position, arm in enumerate(arms):
                if arm.name in self._reasons:
                    continue
                rate, block = rates[arm.name], study.blocks + step
                done = [run for run in self._file.study.runs if run.arm == arm.name and _rate(run, block) == rate]
                if not done:
                    self._tell(arm.name, (wish.steps - step) * len(arms) - position)
                    done = [self._run(Turn(block, position, arm.name), load(rate))]
                if step + 1 < wish.steps:
                    rates[arm.name] = searches[arm.name].send(outcome(done[-1], wish.objective_ms))
        self._tell("", 0)

    def left_out(self) -> str:
        """Which arms were left out after failures, and why, as sentences; empty if none was."""
        after = f"was left out after {_MOST_FAILURES} failures in a row"
        return " ".join(f"{name} {after}: {why}" for name, why in self._reasons.items())

    def _run(self, turn: Turn, load: Load) -> Run:
        began = time.monotonic()
        run = self._measure(turn, self._file.study.arm(turn.arm), load)
        self._spent.append(time.monotonic() - began)
        self._last = run
        if run.counts:
            self._failures[turn.arm] = 0
        elif not _behind(run):
            self._failures[turn.arm] = self._failures.get(turn.arm, 0) + 1
            if self._failures[turn.arm] >= _MOST_FAILURES:
                self._reasons[turn.arm] = run.failure or (run.result.void if run.result else "")
        self._file.add(run)
        return run

    def _tell(self, name: str, left: int) -> None:
        mean = sum(self._spent) / len(self._spent) if self._spent else None
        done = len(self._file.study.runs)
        self._report(Progress(done, done + left, None if mean is None else mean * left, self._last, name))


def _throughput(runs: Sequence[Run], arm: str) -> float:
    """The most that an arm answered in a closed loop: no rate above it can be held."""
    return max(
        run.result.requests_per_second
        for run in runs
        if run.arm == arm and run.counts and run.result is not None and run.result.load.kind == "closed"
    )


def _behind(run: Run) -> bool:
    """Whether the generator could not make the planned arrivals, which is no failure of the arm."""
    return not run.failure and run.result is not None and run.result.load.kind != "closed" and bool(run.result.void)


def _rate(run: Run, block: int) -> float | None:
    """The rate that a run of this block tried; None for a run of another block, or one that has no result."""
    return run.result.load.rate if run.block == block and run.result is not None else None

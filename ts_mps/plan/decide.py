"""With MPS or without: the placement of the models on GPUs, and the reason for the choice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ts_mps.plan.cores import Party, divide, workers_of
from ts_mps.plan.curve import measured_in
from ts_mps.plan.facts import Facts, ModelFacts
from ts_mps.plan.instance import Counts
from ts_mps.plan.predict import Prediction, predict
from ts_mps.plan.problem import Problem, gpu_positions, problem_of, uses_gpu
from ts_mps.plan.processor import cpu_party
from ts_mps.plan.refuse import constraint, refusal
from ts_mps.plan.solve import place
from ts_mps.plan.words import rate, title, workers


@dataclass(frozen=True)
class Decision:
    """What the models on GPUs get.

    Attributes:
        problem: What was solved; its ``mps`` is the decision.
        counts: Workers, shape (GPUs, models of the problem).
        why: Why with or without MPS, as a sentence.
        cpu_workers: Workers of the models on the CPU, by position among ``facts.models``.
    """

    problem: Problem
    counts: Counts
    why: str
    cpu_workers: dict[int, int]

    @cached_property
    def prediction(self) -> Prediction:
        """What it will answer."""
        return predict(self.problem, self.counts, sum(self.cpu_workers.values()))

    @cached_property
    def objective(self) -> float:
        """The value of the placement; 0 where nothing was weighed."""
        return 0.0 if self.problem.nothing_measured else self.problem.instance.objective(self.counts)

    def number(self, position: int) -> int | None:
        """The place in the problem of one of ``facts.models``; None if it has no workers on a GPU."""
        positions = self.problem.positions
        return positions.index(position) if position in positions else None


def decide(facts: Facts) -> Decision:
    """Place the models on GPUs, with MPS, without, or both and the better of the two.

    "auto" goes without MPS only where every model on a GPU was measured both ways, and the best placement without is
    worth at least as much as the best one with it.

    Raises:
        PlanError: Nothing fits; it names the constraint and the nearest that does.
    """
    models = [facts.models[position] for position in gpu_positions(facts)]
    if not models:
        problem, cpu_workers = _with_cores(facts, problem_of(facts, mps=False))
        nowhere = np.zeros((len(facts.gpus), 0), dtype=np.int64)
        return Decision(problem, nowhere, "no model has workers on a GPU", cpu_workers)
    if facts.mps != "auto":
        return _or_refused(*_solved(facts, facts.mps == "on", facts.mps_why or "asked for"))
    with_mps, problem = _solved(facts, mps=True, why="")
    if not all(_both_measured(model) for model in models):
        missing = next(model for model in models if not _both_measured(model))
        why = (
            f"only under MPS do workers compute at the same time; {missing.name} has no measurement that says otherwise"
        )
        return _because(_or_refused(with_mps, problem), why)
    without, _ = _solved(facts, mps=False, why="")
    if with_mps is None and without is not None:
        return _because(without, f"with MPS nothing fits: {constraint(problem)}")
    with_mps = _or_refused(with_mps, problem)
    if without is None:
        return _because(with_mps, "without MPS nothing fits")
    better = with_mps if with_mps.objective > without.objective else without
    return _because(better, _compared(with_mps, without))


def _both_measured(model: ModelFacts) -> bool:
    profile = model.profile
    return profile is not None and all(measured_in(profile, model.batch_size, mps) for mps in (True, False))


def _solved(facts: Facts, mps: bool, why: str) -> tuple[Decision | None, Problem]:
    problem, cpu_workers = _with_cores(facts, problem_of(facts, mps))
    counts = place(problem)
    return (None if counts is None else Decision(problem, counts, why, cpu_workers)), problem


def _with_cores(facts: Facts, problem: Problem) -> tuple[Problem, dict[int, int]]:
    """Divide the host's cores between the models on GPUs without a fixed number and each such model on the CPU."""
    on_cpu = [number for number, model in enumerate(facts.models) if not uses_gpu(facts, model)]
    fixed = sum(model.workers.least for model in facts.models if model.workers.fixed)
    autos = [number for number in on_cpu if not facts.models[number].workers.fixed]
    loads = [load for load in problem.instance.loads if not load.fixed]
    parties = [cpu_party(facts, facts.models[number]) for number in autos]
    if loads:
        weight = sum(load.weight for load in loads)
        parties.append(Party(weight, sum(load.least for load in loads), sum(load.most for load in loads)))
    given = divide(workers_of(facts.host, facts.policy) - fixed, parties)
    cpu_workers = {number: facts.models[number].workers.least for number in on_cpu}
    cpu_workers.update(zip(autos, given, strict=False))
    if loads and given[-1] < parties[-1].most:
        problem = problem.with_auto_workers(given[-1])
    return problem, cpu_workers


def _or_refused(decision: Decision | None, problem: Problem) -> Decision:
    if decision is None:
        raise refusal(problem)
    return decision


def _because(decision: Decision, why: str) -> Decision:
    return replace(decision, why=why)


def _compared(with_mps: Decision, without: Decision) -> str:
    """The figures of both, of every model where they are few, else of the first."""
    models = with_mps.problem.models
    sides = [(side.counts.sum(axis=0), side.prediction.by_gpu.sum(axis=0)) for side in (without, with_mps)]
    (few, slow), (many, fast) = sides
    parts = [
        f"{workers(int(few[number]))} of {title(model, models)} {_make(int(few[number]))} {rate(slow[number])} without "
        f"MPS, and {_said(int(few[number]), int(many[number]))}{rate(fast[number])} with it"
        for number, model in enumerate(models[:3])
    ]
    return "; ".join(parts) + (f"; and {len(models) - 3} more models" if len(models) > 3 else "")


def _make(number: int) -> str:
    return "makes" if number == 1 else "make"


def _said(few: int, many: int) -> str:
    return "" if few == many else f"{workers(many)} {_make(many)} "

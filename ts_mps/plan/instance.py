"""The planning problem in numbers: what the solvers work on, and the one place where a placement is valued."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ts_mps.plan.curve import Curve

Floats = npt.NDArray[np.float64]
#: Workers by GPU and model, shape (GPUs, models).
Counts = npt.NDArray[np.int64]

#: A model without a worker is valued as if it answered so many requests per second: far below any that has one.
UNSERVED = 1e-9


@dataclass(frozen=True)
class Load:
    """One model.

    Attributes:
        least: Workers that it must have, over all GPUs.
        most: Workers that it may have at most.
        each: Workers that it may have at most on one GPU.
        fixed: Whether its number was given.
        weight: Of its throughput.
        memory: Bytes of one worker; 0 where not known.
        waived: Its memory is only estimated and its number was asked for: it may pass the budget, with a warning.
        allowed: Which GPUs it may use, by position.
        sequence: GPUs of its first, second ... worker, repeated; empty where it is free.
        curve: Its throughput.
        percentages: ``percentages[n]``: its thread percentage on a GPU with n workers; empty where there is none.
    """

    least: int
    most: int
    each: int
    fixed: bool
    weight: float
    memory: int
    waived: bool
    allowed: tuple[bool, ...]
    sequence: tuple[int, ...]
    curve: Curve
    percentages: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Instance:
    """Models, the room on each GPU, and the rules.

    Attributes:
        loads: Models that get workers on a GPU.
        clients: Workers that each GPU takes; infinite without MPS.
        budgets: Bytes that each GPU's workers may hold; infinite where not known.
        auto_workers: Workers that all models without a fixed number may have together (host cores).
        cost: What each worker must add to the logarithm of its model's throughput.
    """

    loads: tuple[Load, ...]
    clients: tuple[float, ...]
    budgets: tuple[float, ...]
    auto_workers: float
    cost: float

    @cached_property
    def weights(self) -> Floats:
        """Shape (models,)."""
        return np.array([load.weight for load in self.loads])

    @cached_property
    def memory(self) -> Floats:
        """Bytes of one worker, shape (models,)."""
        return np.array([float(load.memory) for load in self.loads])

    @cached_property
    def firm_memory(self) -> Floats:
        """The same, 0 where it may pass the budget."""
        return np.array([0.0 if load.waived else float(load.memory) for load in self.loads])

    @cached_property
    def auto(self) -> npt.NDArray[np.bool_]:
        """Which models have no fixed number, shape (models,)."""
        return np.array([not load.fixed for load in self.loads], dtype=bool)

    @cached_property
    def _widest(self) -> int:
        return max(max(load.each, load.curve.last) for load in self.loads) + 1

    @cached_property
    def rates(self) -> Floats:
        """Throughput of n workers that have a GPU for themselves, shape (models, n)."""
        return np.stack([load.curve.table(self._widest) for load in self.loads])

    @cached_property
    def parts(self) -> Floats:
        """The part of a GPU that each request per second uses, shape (models,)."""
        return np.array([load.curve.part for load in self.loads])

    @cached_property
    def uses(self) -> Floats:
        """The part of a GPU that n workers use, shape (models, n). More workers never use less."""
        used: Floats = np.maximum.accumulate(self.rates, axis=1) * self.parts[:, None]
        return used

    @cached_property
    def singles(self) -> Floats | None:
        """What one worker answers at most beside n - 1 others, shape (models, n); None where nothing limits it."""
        if not any(load.percentages and load.curve.limited for load in self.loads):
            return None
        widest = max(len(load.percentages) for load in self.loads)
        table = np.full((len(self.loads), widest), np.inf)
        for row, load in enumerate(self.loads):
            for workers, percentage in enumerate(load.percentages):
                table[row, workers] = load.curve.one_worker(percentage)
        return table

    def alone(self, models: npt.NDArray[np.int64], counts: Counts, workers: Counts) -> tuple[Floats, Floats]:
        """(throughput, part of the GPU used) of models before they share it.

        Args:
            models: Which, shape (m,).
            counts: Their workers, shape (..., m).
            workers: Workers of all models on the GPU, shape (..., 1).
        """
        rates, uses = self.rates[models, counts], self.uses[models, counts]
        if self.singles is not None:
            single = self.singles[models, np.minimum(workers, self.singles.shape[1] - 1)]
            ceiling = np.where(counts > 0, np.maximum(counts, 1) * single, np.inf)
            uses = np.minimum(uses, ceiling * self.parts[models])
            rates = np.minimum(rates, ceiling)
        return rates, uses

    def throughput(self, counts: Counts) -> Floats:
        """Requests per second of each model on one GPU, for counts and a result of shape (..., models).

        Where the models would use more than the whole GPU, each gets its throughput divided by that sum.
        """
        every = np.arange(len(self.loads))
        rates, uses = self.alone(every, counts, counts.sum(axis=-1, keepdims=True))
        shared: Floats = rates / np.maximum(1.0, uses.sum(axis=-1, keepdims=True))
        return shared

    def value(self, throughput: Floats, workers: npt.NDArray[np.int64]) -> Floats:
        """The objective, for arrays of shape (..., models): what is maximised.

        Sum of weight x (ln throughput - cost x workers): proportional fairness (F. Kelly, "Charging and rate control
        for elastic traffic", 1997), in which each worker must pay for itself.
        """
        gains = np.log(np.maximum(throughput, UNSERVED)) - self.cost * workers
        total: Floats = gains @ self.weights
        return total

    def objective(self, counts: Counts) -> float:
        """The objective of a whole placement, shape (GPUs, models)."""
        return float(self.value(self.throughput(counts).sum(axis=0), counts.sum(axis=0)))

    def fits(self, counts: Counts, gpu: int) -> npt.NDArray[np.bool_]:
        """Whether workers of shape (..., models) fit on a GPU: its clients, and its memory.

        Memory that is only estimated may pass the budget for workers that were asked for by number; where other
        workers join them, all memory counts.
        """
        within = counts.sum(axis=-1) <= self.clients[gpu]
        within &= counts @ self.firm_memory <= self.budgets[gpu]
        if any(load.waived for load in self.loads):
            within &= (counts @ self.memory <= self.budgets[gpu]) | ~(counts[..., self.auto] > 0).any(axis=-1)
        result: npt.NDArray[np.bool_] = within
        return result

    def alone_on(self, model: int, gpu: int) -> float:
        """The most workers of a model that fit on a GPU without others, as far as its clients and memory go."""
        memory, budget = float(self.firm_memory[model]), self.budgets[gpu]
        if not self.loads[model].allowed[gpu]:
            return 0.0
        if memory == 0 or math.isinf(budget):
            return self.clients[gpu]
        return min(self.clients[gpu], budget // memory)

    def overfull(self) -> bool:
        """Whether the least numbers are too many for all GPUs together, or one worker is too large for any GPU."""
        least = np.array([load.least for load in self.loads])
        if least.sum() > sum(self.clients) or least @ self.firm_memory > sum(self.budgets):
            return True
        budgets = np.array(self.budgets)
        return any(
            load.least > 0 and memory > budgets[list(load.allowed)].max()
            for load, memory in zip(self.loads, self.firm_memory, strict=True)
        )

    def size(self) -> float:
        """How many placements there are at most, whatever the budgets: they must not decide how well is searched."""
        total = 1.0
        for load in self.loads:
            gpus = sum(load.allowed)
            if load.sequence:
                total *= load.most - load.least + 1
            elif load.least == load.most:
                total *= float(load.most + 1) ** (gpus - 1)
            else:
                total *= float(load.each + 1) ** gpus
        return total

    def table_size(self) -> float:
        """The same for one GPU."""
        return math.prod(1.0 if load.sequence else load.each + 1.0 for load in self.loads)


def in_sequence(load: Load, workers: int, gpus: int) -> npt.NDArray[np.int64]:
    """Workers by GPU of a model whose GPUs were given in turn, shape (gpus,)."""
    turns = [load.sequence[worker % len(load.sequence)] for worker in range(workers)]
    return np.bincount(np.array(turns, dtype=np.int64), minlength=gpus)


def cost_of(least_gain: float) -> float:
    """What a worker must add to the logarithm of the throughput to raise it by this part."""
    return math.log1p(least_gain)

"""A good placement of any instance: the least that must run, then worker by worker what brings most, then exchanges.

It is the starting point of the exact search and, on large instances, the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ts_mps.plan.instance import UNSERVED, Counts, Floats, Instance

#: A step must raise the objective by more than this, so that rounding never makes it go round in circles.
STEP = 1e-9

_ROUNDS = 4


def minimum(instance: Instance) -> Counts | None:
    """Every model with the least number of workers; None if no order that is tried makes them fit.

    Workers go one by one to the GPU with the fewest, or with the least of it in use, or the fullest that still takes
    them; large ones first.
    """
    scores: tuple[Callable[[_State, int], Floats], ...] = (
        lambda state, _: state.used + 1e-6 * state.counts.sum(axis=1),
        lambda state, _: state.counts.sum(axis=1).astype(np.float64),
        lambda state, model: state.memory_after(model),
        lambda state, model: -state.memory_after(model),
    )
    for score in scores:
        state = _State(instance)
        if all(state.put(model, score) for model in _order(instance)):
            return state.counts
    return None


def balanced(instance: Instance, attached: Sequence[int]) -> Counts | None:
    """Every worker, model by model, on the GPU with the fewest workers and attached clients that still takes it.

    The lower index wins a tie. None if a worker finds no GPU so.
    """
    state = _State(instance)
    there = np.array(attached)
    for model, load in enumerate(instance.loads):
        for _ in range(load.least):
            if not state.put(model, lambda state, _: (state.counts.sum(axis=1) + there).astype(np.float64)):
                return None
    return state.counts


def good(instance: Instance) -> Counts | None:
    """A placement that fits and that no single further worker and no single exchange on one GPU improves much."""
    counts = minimum(instance)
    if counts is None:
        return None
    state = _State(instance, counts)
    for _ in range(_ROUNDS):
        state.grow()
        if not state.exchange():
            break
    state.grow()
    return state.counts


def marginal(instance: Instance, counts: Counts) -> Floats:
    """What one more worker adds to the objective if nothing forbade it, shape (GPUs, models).

    Minus infinity on GPUs that the model may not use or whose turn it is not.
    """
    state = _State(instance, counts)
    return np.stack([state.gains(gpu, state.allowed_on(gpu)) for gpu in range(len(counts))])


def _order(instance: Instance) -> list[int]:
    """Models once for each of their least workers: those that follow a sequence or have few GPUs first, then large."""
    models = sorted(
        range(len(instance.loads)),
        key=lambda model: (
            not instance.loads[model].sequence,
            sum(instance.loads[model].allowed) if not all(instance.loads[model].allowed) else len(instance.clients),
            -instance.loads[model].memory,
            model,
        ),
    )
    return [model for model in models for _ in range(instance.loads[model].least)]


class _State:
    """A placement that is being built, with what is asked of it again and again."""

    def __init__(self, instance: Instance, counts: Counts | None = None) -> None:
        shape = (len(instance.clients), len(instance.loads))
        self.instance = instance
        self.counts: Counts = np.zeros(shape, dtype=np.int64) if counts is None else counts.copy()
        self.throughput: Floats = instance.throughput(self.counts)
        self.used: Floats = np.zeros(shape[0])
        for gpu in range(shape[0]):
            self._refresh(gpu)
        self.clients = np.array(instance.clients)
        self.budgets = np.array(instance.budgets)
        self.allowed = np.array([load.allowed for load in instance.loads], dtype=bool).T
        self.each = np.array([load.each for load in instance.loads])
        self.most = np.array([load.most for load in instance.loads])
        self.least = np.array([load.least for load in instance.loads])
        self.following = [model for model, load in enumerate(instance.loads) if load.sequence]

    def _refresh(self, gpu: int) -> None:
        counts = self.counts[gpu]
        here = np.flatnonzero(counts)
        rates, uses = self.instance.alone(here, counts[here], counts.sum(keepdims=True))
        self.used[gpu] = uses.sum()
        self.throughput[gpu] = 0.0
        self.throughput[gpu, here] = rates / max(1.0, self.used[gpu])

    def change(self, gpu: int, model: int, by: int) -> None:
        self.counts[gpu, model] += by
        self._refresh(gpu)

    def memory_after(self, model: int) -> Floats:
        after: Floats = self.counts @ self.instance.memory + self.instance.memory[model]
        return after

    def turn(self, model: int) -> int | None:
        """The GPU that comes next for a model that follows a sequence."""
        sequence = self.instance.loads[model].sequence
        return sequence[int(self.counts[:, model].sum()) % len(sequence)] if sequence else None

    def allowed_on(self, gpu: int) -> npt.NDArray[np.bool_]:
        """Which models a further worker may be here of, shape (models,)."""
        allowed: npt.NDArray[np.bool_] = self.allowed[gpu].copy()
        for model in self.following:
            allowed[model] &= self.turn(model) == gpu
        return allowed

    def room(self, gpu: int) -> npt.NDArray[np.bool_]:
        """Which models a further worker on this GPU would fit of, shape (models,)."""
        instance, counts = self.instance, self.counts[gpu]
        room = self.allowed_on(gpu) & (counts < self.each) & (counts.sum() < self.clients[gpu])
        firm = counts @ instance.firm_memory + instance.firm_memory
        room &= firm <= self.budgets[gpu]
        beside = (counts[instance.auto] > 0).any() | instance.auto
        room &= ~beside | (counts @ instance.memory + instance.memory <= self.budgets[gpu])
        result: npt.NDArray[np.bool_] = room
        return result

    def _takes(self, model: int) -> npt.NDArray[np.bool_]:
        """Which GPUs take one more worker of a model, shape (GPUs,)."""
        instance = self.instance
        takes = self.allowed[:, model] & (self.counts[:, model] < self.each[model])
        takes &= self.counts.sum(axis=1) < self.clients
        takes &= self.counts @ instance.firm_memory + instance.firm_memory[model] <= self.budgets
        beside = (self.counts[:, instance.auto] > 0).any(axis=1) | instance.auto[model]
        takes &= ~beside | (self.memory_after(model) <= self.budgets)
        turn = self.turn(model)
        if turn is not None:
            takes &= np.arange(len(takes)) == turn
        result: npt.NDArray[np.bool_] = takes
        return result

    def put(self, model: int, score: Callable[[_State, int], Floats]) -> bool:
        """One more worker of a model on the GPU of the lowest score that takes it."""
        takes = self._takes(model)
        if not takes.any():
            return False
        self.change(int(np.argmin(np.where(takes, score(self, model), np.inf))), model, 1)
        return True

    def grow(self) -> None:
        """Add the worker that raises the objective most, until none does.

        A gain is computed again only when it is the highest (M. Minoux, "Accelerated greedy algorithms", 1978), or
        when something changed on its GPU; before the end all are.
        """
        instance = self.instance
        gpus = range(len(self.counts))
        gains, fresh = np.stack([self.gains(gpu) for gpu in gpus]), True
        while self.counts.sum(axis=0)[instance.auto].sum() < instance.auto_workers:
            open_gains = np.where(self.counts.sum(axis=0) < self.most, gains, -np.inf)
            gpu, model = (int(place) for place in np.unravel_index(int(np.argmax(open_gains)), gains.shape))
            if not open_gains[gpu, model] > STEP:
                if fresh:
                    return
                gains, fresh = np.stack([self.gains(gpu) for gpu in gpus]), True
                continue
            gains[gpu] = self.gains(gpu)
            if gains[gpu, model] < open_gains[gpu, model] - STEP:
                continue
            self.change(gpu, model, 1)
            gains[gpu], fresh = self.gains(gpu), False

    def gains(self, gpu: int, among: npt.NDArray[np.bool_] | None = None) -> Floats:
        """What one more worker of each model on this GPU adds to the objective, shape (models,).

        Minus infinity for other models than these; without them, for those that have no room.
        """
        instance = self.instance
        counts = self.counts[gpu]
        models = np.flatnonzero(self.room(gpu) if among is None else among)
        gains = np.full(len(counts), -np.inf)
        if not len(models):
            return gains
        here = np.flatnonzero(counts)
        after = counts.sum(keepdims=True) + 1
        totals = self.throughput.sum(axis=0)
        rates, uses = instance.alone(here, counts[here], after)
        own_rates, own_uses = instance.alone(models, counts[models] + 1, after)
        same = models[:, None] == here[None, :]
        share = np.maximum(1.0, uses.sum() - (same * uses).sum(axis=1) + own_uses)
        others = totals[here] - self.throughput[gpu, here] + np.where(same, 0.0, rates) / share[:, None]
        others = np.where(same, 1.0, np.maximum(others, UNSERVED) / np.maximum(totals[here], UNSERVED))
        own = totals[models] - self.throughput[gpu, models] + own_rates / share
        own = np.maximum(own, UNSERVED) / np.maximum(totals[models], UNSERVED)
        gains[models] = np.log(others) @ instance.weights[here] + instance.weights[models] * (
            np.log(own) - instance.cost
        )
        return gains

    def exchange(self) -> bool:
        """On each GPU, take one worker away, or put another model's in its place, where that is better."""
        improved = False
        for gpu in range(len(self.counts)):
            improved |= self._exchange_on(gpu)
        return improved

    def _exchange_on(self, gpu: int) -> bool:
        instance = self.instance
        here = np.flatnonzero(self.counts[gpu])
        totals = self.counts.sum(axis=0)
        free = [model for model in here if totals[model] > self.least[model] and model not in self.following]
        if not free:
            return False
        trials = []
        for gone in free:
            for come in (None, *here):
                trial = self.counts[gpu, here].copy()
                trial[here == gone] -= 1
                if come is not None:
                    if come == gone or come in self.following or self.counts[gpu, come] >= self.each[come]:
                        continue
                    if totals[come] >= self.most[come]:
                        continue
                    trial[here == come] += 1
                trials.append(trial)
        some = np.array(trials)
        whole = np.zeros((len(some), len(totals)), dtype=np.int64)
        whole[:, here] = some
        rates, uses = instance.alone(here, some, some.sum(axis=1, keepdims=True))
        shared = rates / np.maximum(1.0, uses.sum(axis=1, keepdims=True))
        rest = self.throughput.sum(axis=0)[here] - self.throughput[gpu, here]
        weights = instance.weights[here]
        values = np.log(np.maximum(rest + shared, UNSERVED)) @ weights - instance.cost * (some @ weights)
        now = float(
            np.log(np.maximum(rest + self.throughput[gpu, here], UNSERVED)) @ weights
            - instance.cost * (self.counts[gpu, here] @ weights)
        )
        values = np.where(instance.fits(whole, gpu), values, -np.inf)
        chosen = int(np.argmax(values))
        if not values[chosen] > now + STEP:
            return False
        self.counts[gpu] = whole[chosen]
        self._refresh(gpu)
        return True

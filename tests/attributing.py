"""Which fault a request belongs to, of several that come one after the other."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping

from loading import Answer, Load


class Requests:
    """Gives every answer of some loads to a fault: the first that was over only after the request had been sent.

    One that TorchServe dropped fails half a minute later, when its client has waited long enough, and perhaps in the
    middle of the next fault. It is added to the counters of the one that it belongs to.

    Args:
        loads: Model -> its clients.
    """

    def __init__(self, loads: Mapping[str, Load]) -> None:
        self._loads = loads
        self._read = dict.fromkeys(loads, 0)
        self._over: list[float] = []
        self._counted: list[tuple[dict[str, Counter[int]], Counter[str]]] = []
        # Answers of which the fault is still to come.
        self._later: dict[str, list[Answer]] = {model: [] for model in loads}
        self._unexplained: Counter[str] = Counter()

    def over(self) -> tuple[dict[str, Counter[int]], Counter[str]]:
        """A fault is over now.

        Returns:
            Model -> statuses of its failed requests (0: no answer), and model -> how many were sent since the fault
            before; both are added to by :meth:`count`.
        """
        self._over.append(time.monotonic())
        self._counted.append(({model: Counter() for model in self._loads}, Counter()))
        return self._counted[-1]

    def count(self, began: float) -> None:
        """Count what has been answered by now.

        Args:
            began: When the last fault began (monotonic); what failed before it and after the one before has no fault.
        """
        for model, load in self._loads.items():
            fresh = load.answers[self._read[model] :]
            self._read[model] += len(fresh)
            answers, self._later[model] = self._later[model] + fresh, []
            for answer in answers:
                number = bisect_right(self._over, answer.sent)
                if number == len(self._over):
                    self._later[model].append(answer)
                    continue
                failed, sent = self._counted[number]
                sent[model] += 1
                if answer.good:
                    continue
                if number == len(self._over) - 1 and answer.done < began:
                    self._note(model, answer)
                else:
                    failed[model][answer.status] += 1

    def end(self) -> None:
        """No request comes any more: count the rest."""
        # Whatever failed after the last fault began and before it was over is its own.
        self.count(0.0)
        for model, answers in self._later.items():
            for answer in answers:
                if not answer.good:
                    self._note(model, answer)

    @property
    def unexplained(self) -> list[str]:
        """What failed while nothing was broken, a sentence for each kind; complete after :meth:`end`."""
        return [f"{count} without a fault: {what}" for what, count in self._unexplained.items()]

    def _note(self, model: str, answer: Answer) -> None:
        self._unexplained[f"{model} {answer.status} {answer.body[:120]!r}"] += 1

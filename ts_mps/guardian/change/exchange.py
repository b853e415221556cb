"""What verbs ask of the guardian and what it answers, as files: it is the only one who changes anything.

A request is ``<number>.json`` in the instance's folder of changes, its answer ``<number>.answer`` beside it, rewritten
at every step, and ``<number>.end`` the wish that a change ends between two workers.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ts_mps import errors
from ts_mps.errors import TsMpsError
from ts_mps.files import read_json, write_json
from ts_mps.paths import InstancePaths

#: Version of both JSON forms.
CHANGE_VERSION = 1


@dataclass(frozen=True)
class Change:
    """What is to be changed.

    Attributes:
        what: "restart" (worker by worker), "scale" or "reload".
        model: Model that it is about, NAME or NAME/VERSION; empty for all.
        workers: How many the model shall have; 0 where it is no "scale".
        plan: Plan file that a "reload" puts in force; empty for what the start named: its plan file or its settings.
    """

    what: str
    model: str = ""
    workers: int = 0
    plan: str = ""

    def __str__(self) -> str:
        """As a part of a sentence."""
        if self.what == "restart":
            return f"rolling restart of {f'model {self.model}' if self.model else 'all models'}"
        if self.what == "scale":
            return f"scaling model {self.model} to {self.workers} worker(s)"
        return f"reload of {self.plan}" if self.plan else "reload"


@dataclass(frozen=True)
class Answer:
    """How it goes.

    Attributes:
        state: "running", then "done", "ended" (between two workers, as asked), "refused" (nothing was touched) or
            "failed".
        said: Every step, a sentence each.
        error: Why it was refused or failed, as a sentence.
        remedy: What can be done.
        details: Evidence.
        kind: Class of the error, of :mod:`ts_mps.errors`.
    """

    state: str = "running"
    said: tuple[str, ...] = ()
    error: str = ""
    remedy: str = ""
    details: str = ""
    kind: str = "TsMpsError"

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.state != "running"

    def failed(self, state: str, error: TsMpsError) -> Answer:
        """This answer, ended by an error."""
        # The nearest class that the verb can look up: parts of ts-mps have errors of their own below these.
        kind = next(base.__name__ for base in type(error).__mro__ if base.__module__ == errors.__name__)
        return replace(self, state=state, error=error.what, remedy=error.remedy, details=error.details, kind=kind)

    def raise_error(self) -> None:
        """Raise what ended it, as the guardian met it.

        Raises:
            TsMpsError: It was refused, or failed.
        """
        if self.error:
            kind: type[TsMpsError] = getattr(errors, self.kind)
            raise kind(self.error, self.remedy, self.details)


class Exchange:
    """The files of one request.

    Args:
        paths: The instance.
        number: The request's name.
    """

    def __init__(self, paths: InstancePaths, number: str) -> None:
        self.number = number
        self._request = paths.changes / f"{number}.json"
        self._answer = paths.changes / f"{number}.answer"
        self._end = paths.changes / f"{number}.end"

    @classmethod
    def ask(cls, paths: InstancePaths, change: Change) -> Exchange:
        """Write a request.

        Raises:
            OSError: It cannot be written.
        """
        paths.changes.mkdir(mode=0o700, exist_ok=True)
        # By time, so that the oldest request comes first.
        exchange = cls(paths, f"{time.time():.6f}-{uuid.uuid4().hex[:8]}")
        write_json(exchange._request, {"version": CHANGE_VERSION, **asdict(change)})
        return exchange

    def take(self) -> Change | None:
        """The request, which is thereby taken; None where it cannot be read."""
        value = read_json(self._request)
        self._request.unlink(missing_ok=True)
        if value is None or value.pop("version", None) != CHANGE_VERSION:
            return None
        return Change(**value)

    def answer(self, answer: Answer) -> None:
        """Write how it goes.

        Raises:
            OSError: It cannot be written.
        """
        write_json(self._answer, {"version": CHANGE_VERSION, **asdict(answer)})

    @property
    def answered(self) -> Answer | None:
        """What was answered last; None where nothing was."""
        value: Mapping[str, Any] | None = read_json(self._answer)
        if value is None or value.get("version") != CHANGE_VERSION:
            return None
        fields = {name: value[name] for name in Answer.__dataclass_fields__}
        return Answer(**{**fields, "said": tuple(fields["said"])})

    def wish_end(self) -> None:
        """Ask for an end between two workers."""
        self._end.touch()

    @property
    def end_wished(self) -> bool:
        """Whether somebody asked for an end."""
        return self._end.exists()

    def clear(self) -> None:
        """Remove the files."""
        for path in (self._request, self._answer, self._end):
            path.unlink(missing_ok=True)


def waiting(paths: InstancePaths) -> tuple[Exchange, ...]:
    """Requests that nobody has taken, oldest first."""
    return tuple(Exchange(paths, path.stem) for path in sorted(paths.changes.glob("*.json")))

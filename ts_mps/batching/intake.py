"""From the requests of a batch to instances that can be pooled: decoded, prepared, checked.

What goes wrong for one request becomes the error that its client is told, and the others go on without it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ts_mps.batching.columns import as_declared
from ts_mps.batching.errors import RequestError, requests_fault, where
from ts_mps.batching.grid import Grid
from ts_mps.batching.instances import Input, Instances
from ts_mps.batching.request import Request

_log = logging.getLogger(__name__)

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

#: What decoding code raises on input that it did not expect; anything else is a fault of the handler.
_CLIENTS_FAULT = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, OSError)


@dataclass(frozen=True)
class Intake:
    """How a handler takes its requests in.

    Args:
        decode: :meth:`BatchHandler.decode`.
        prepare: :meth:`BatchHandler.prepare`; None if the handler has none of its own.
        inputs: The model's inputs.
        checks_columns: Whether the columns must be as declared; not for a handler with a ``collate`` of its own.
        grid: The lengths that are accepted.
        threads: Decode side by side; None to decode one after another.
    """

    decode: Callable[[Request], Instances]
    prepare: Callable[[list[Instances]], list[Instances]] | None
    inputs: Mapping[str, Input]
    checks_columns: bool
    grid: Grid
    threads: ThreadPoolExecutor | None

    def take(self, requests: Sequence[Request], errors: dict[int, RequestError]) -> dict[int, Instances]:
        """Take a batch in.

        Args:
            requests: The batch.
            errors: By place in the batch, what the client of a request is told; gets one for each that fails.

        Returns:
            By place in the batch the instances, at least one each, of the requests that did not fail.
        """
        found = _kept(enumerate(self._decoded(requests)), errors)
        if self.prepare is not None and found:
            found = self._prepared(found, self.prepare, errors)
        return _kept(((index, _caught(self._checked, one)) for index, one in found.items()), errors)

    def _decoded(self, requests: Sequence[Request]) -> Iterable[Instances | BaseException]:
        if self.threads is None or len(requests) == 1:
            return [_caught(self._decode, request) for request in requests]
        return self.threads.map(functools.partial(_caught, self._decode), requests)

    def _decode(self, request: Request) -> Instances:
        """What decode makes of a request, if it is not more than one request may hold."""
        made = self.decode(request)
        if isinstance(made, Instances):
            request.limit(len(made))
        return made

    def _prepared(
        self,
        found: Mapping[int, Instances],
        prepare: Callable[[list[Instances]], list[Instances]],
        errors: dict[int, RequestError],
    ) -> dict[int, Instances]:
        """All at once, or if that fails each request alone."""
        try:
            made: list[tuple[int, object]] = list(zip(found, prepare(list(found.values())), strict=True))
        except requests_fault():
            alone = functools.partial(_alone, prepare)
            made = [(index, _caught(alone, one)) for index, one in found.items()]
        return _kept(made, errors)

    def _checked(self, instances: Instances) -> Instances:
        """A request's instances with their lengths, once they are known to be such as can be pooled.

        Raises:
            RequestError: They cannot.
        """
        if not len(instances):
            raise RequestError("The request has no instances.")
        if self.checks_columns:
            columns = {name: as_declared(name, one, instances.columns.get(name)) for name, one in self.inputs.items()}
            instances.columns = {**instances.columns, **columns}
        if not self.grid.has_length:
            instances.lengths = None
        else:
            if instances.lengths is None:
                name = next(name for name, one in self.inputs.items() if one.has_length)
                instances.lengths = np.fromiter(map(len, instances.columns[name]), np.int64, len(instances))
            self.grid.length(int(instances.lengths.min()))
            self.grid.length(int(instances.lengths.max()))
        return instances


def _caught(make: Callable[[_Given], _Made], given: _Given) -> _Made | BaseException:
    """What ``make`` returns, or the exception that it raised: one request's fault is not its neighbours'."""
    try:
        return make(given)
    except requests_fault() as error:
        return error


def _alone(prepare: Callable[[list[Instances]], list[Instances]], instances: Instances) -> Instances:
    """One request's instances, prepared without its neighbours.

    Raises:
        RequestError: ``prepare`` made not one entry of one.
    """
    made = prepare([instances])
    if len(made) != 1:
        raise RequestError(f"prepare returned {len(made)} entries for one request.", 500)
    return made[0]


def _kept(made: Iterable[tuple[int, object]], errors: dict[int, RequestError]) -> dict[int, Instances]:
    """By place in the batch, what became instances; for the others their errors are added."""
    found: dict[int, Instances] = {}
    for index, one in made:
        if isinstance(one, Instances):
            found[index] = one
        else:
            errors[index] = _refusal(one)
    return found


def _refusal(made: object) -> RequestError:
    """What the client is told in place of an answer: whose fault it was, by the kind of what was raised."""
    if isinstance(made, RequestError):
        return made
    if isinstance(made, MemoryError):
        return RequestError("This server is out of memory.", 503)
    if isinstance(made, _CLIENTS_FAULT):
        _log.warning("A request could not be decoded: %s", where(made))
        return RequestError(f"The request could not be decoded: {type(made).__name__}: {made}", 400)
    if isinstance(made, BaseException):
        _log.error("A request could not be decoded: %s", where(made))
        return RequestError(f"This server's handler failed on the request: {type(made).__name__}.", 500)
    _log.error("decode or prepare returned %s in place of Instances", type(made).__name__)
    return RequestError("This server's handler did not decode the request into instances.", 500)

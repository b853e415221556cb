"""Places of the plan that take no worker for now: files that the guardian writes; a worker that claims reads them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ts_mps.files import read_json, write_json
from ts_mps.paths import InstancePaths

#: The longest that a worker waits for a place that is held back for a moment; far less than TorchServe allows a LOAD
#: (default_startup_timeout, 120 s). A place that is held back for longer refuses it.
HOLD_SECONDS = 45.0


@dataclass(frozen=True)
class Hold:
    """Why a slot takes no worker for now.

    Attributes:
        reason: A sentence.
        until: Seconds of time.monotonic() at which it takes workers again; None until the guardian says so.
    """

    reason: str
    until: float | None = None

    def lapsed(self, now: float) -> bool:
        """Whether its time is over."""
        return self.until is not None and self.until <= now

    def soon(self, now: float) -> bool:
        """Whether a worker may wait for its end."""
        return self.until is not None and self.until <= now + HOLD_SECONDS


def hold_back(instance: InstancePaths, holds: Mapping[int, Hold]) -> None:
    """Let exactly these slots, by number, take no new worker; whoever is in one stays.

    Raises:
        OSError: The file cannot be written; what was held back before stays so.
    """
    write_json(_file(instance), {str(number): asdict(hold) for number, hold in holds.items()})


def held_back(instance: InstancePaths) -> dict[int, Hold]:
    """The slots that take no worker now, by number."""
    now = time.monotonic()
    found = {int(number): Hold(**hold) for number, hold in (read_json(_file(instance)) or {}).items()}
    return {number: hold for number, hold in found.items() if not hold.lapsed(now)}


def put_to_rest(instance: InstancePaths, models: Collection[tuple[str, str]]) -> None:
    """Note the models and versions for which TorchServe was asked to have no worker, as their places are held back.

    Raises:
        OSError: The file cannot be written; what was noted before stays so.
    """
    write_json(instance.slots / "resting", {"models": sorted(models)})


def at_rest(instance: InstancePaths) -> frozenset[tuple[str, str]]:
    """The models and versions that a guardian has put to rest and not woken since."""
    noted = (read_json(instance.slots / "resting") or {}).get("models", ())
    return frozenset((model, version) for model, version in noted)


def _file(instance: InstancePaths) -> Path:
    # Without a suffix, so that it is not taken for a worker's record; it goes with the slots at the next start.
    return instance.slots / "held"

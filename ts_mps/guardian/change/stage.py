"""What every step of a change needs: who it is about, whom to tell, and when to stop."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from ts_mps.errors import TsMpsError
from ts_mps.guardian.prepare import Prepared
from ts_mps.plan.model import Plan
from ts_mps.torchserve.api import Api


class Ended(TsMpsError):
    """The change ended before its end: between two workers as asked, or with the instance."""


@dataclass
class Stage:
    """A change under way. It runs in a thread; what it says of the plan and of pids is read by the guardian's loop.

    Attributes:
        prepared: The start.
        plan: The plan in force.
        api: TorchServe's management API.
        say: Told each step, as a sentence.
        put_in_force: Makes a plan the one that workers, watch and guardian go by; returns when it is.
        check: Raises :class:`Ended` where the instance is being stopped or TorchServe is gone.
        end_wished: Whether somebody wants it to end between two workers.
        lost_loading: When a worker of a model last went before it had loaded, seconds of time.monotonic().
        asked: Pid -> why a worker was asked to leave; it is nobody's fault if it then goes.
        models: Models that are being changed.
        secret: What words must say.
    """

    prepared: Prepared
    plan: Plan
    api: Api
    say: Callable[[str], None]
    put_in_force: Callable[[Plan], None]
    check: Callable[[], None]
    end_wished: Callable[[], bool]
    lost_loading: Callable[[str], float]
    asked: dict[int, str] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)
    secret: int = field(default_factory=lambda: secrets.randbits(64))

    def between(self) -> None:
        """Called where nothing is half done.

        Raises:
            Ended: It shall not go on.
        """
        self.check()
        if self.end_wished():
            raise Ended("The change was ended between two workers, as asked; the rest stays as it was.")

    def adopt(self, plan: Plan) -> None:
        """Put a plan in force."""
        self.put_in_force(plan)
        self.plan = plan

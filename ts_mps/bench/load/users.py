"""What Locust loads: its user, its events, its options. Importing this imports Locust, which patches everything."""

from __future__ import annotations

from typing import Any, ClassVar

import gevent
from locust import FastHttpUser, events, task
from locust.env import Environment

from ts_mps.bench.load.conductor import Conductor
from ts_mps.bench.load.options import add_options


class TorchServeUser(FastHttpUser):  # type: ignore[misc]  # Locust's types are not read
    """One connection of a closed loop. In an open loop arrivals do not depend on users, and so they only wait."""

    conductor: ClassVar[Conductor]

    @task  # type: ignore[untyped-decorator]
    def load(self) -> None:
        """Send until the load ends; Locust ends the user then."""
        part = self.conductor.part
        if part is not None and part.spec.load.kind == "closed":
            part.drive()
        gevent.sleep(3600)


def _on_parser(parser: Any, **_: Any) -> None:
    add_options(parser)


def _on_init(environment: Environment, **_: Any) -> None:
    TorchServeUser.conductor = Conductor(environment)


events.init_command_line_parser.add_listener(_on_parser)
events.init.add_listener(_on_init)

"""The processes among which a load is shared: what they have reported, and which of them are gone."""

from __future__ import annotations

import time
from typing import Any

import gevent
from locust.runners import STATE_MISSING, MasterRunner, Runner

#: The name under which a single process, which has no master, reports to itself.
ALONE = "local"
#: Seconds between looks for last reports.
_POLL_S = 0.02
#: Longest wait, in seconds, for processes that are stopped to hand in what they counted: until then Locust has noticed
#: which of them have died.
_HANDING_IN_S = 6.0


class Sharers:
    """Those of one run, as Locust's master sees them; a single process shares with nobody.

    Every report holds all that a process has counted so far, so the latest one of each process is all that matters,
    and a lost one loses nothing. It says "last" when no other comes, and "done" when the whole share is made.

    Attributes:
        names: Those that have a share.
        reports: The latest one of each.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.names: list[str] = []
        self.reports: dict[str, dict[str, Any]] = {}

    def gather(self) -> None:
        """Begin anew, with those that are ready now."""
        self.names, self.reports = [ALONE], {}
        if isinstance(self._runner, MasterRunner):
            clients = self._runner.clients
            self.names = sorted(client.id for client in clients.ready + clients.spawning + clients.running)

    def owing(self, what: str) -> set[str]:
        """Those whose report does not say ``what`` yet: "last" or "done"."""
        return {name for name in self.names if not self.reports.get(name, {}).get(what)}

    def gone(self, what: str) -> set[str]:
        """Those of them that Locust's master does not know, or hears nothing of."""
        return self.owing(what) - self._present()

    def collect(self, message: str) -> None:
        """Have all hand in their last reports, which ``message`` asks them for, and wait for those that are there."""
        for name in self.owing("last") & self._present():
            self._runner.send_message(message, client_id=name)
        deadline = time.monotonic() + _HANDING_IN_S
        while self.owing("last") & self._present() and time.monotonic() < deadline:
            gevent.sleep(_POLL_S)

    def _present(self) -> set[str]:
        if not isinstance(self._runner, MasterRunner):
            return {ALONE}
        return {name for name, client in self._runner.clients.items() if client.state != STATE_MISSING}

"""What the verbs share that ask the running guardian for a change: they wait for its end and show every step."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType

from ts_mps.cli.render import note, print_json, progress, show
from ts_mps.errors import NotRunningError, TsMpsError
from ts_mps.guardian.change.exchange import Answer, Change, Exchange
from ts_mps.guardian.instance import RESULT_VERSION
from ts_mps.guardian.state import guardian_lives, load_state
from ts_mps.paths import Home, InstancePaths

#: Seconds between two looks at the answer.
PAUSE = 0.2


def change_instance(home: Home, name: str, change: Change, *, as_json: bool) -> int:
    """Ask for a change and wait for its end.

    Returns:
        0; 130 where it was ended, or left alone, by Ctrl-C.

    Raises:
        NotRunningError: The instance does not run, or nobody guards it.
        TsMpsError: The guardian refused it, or it failed.
    """
    paths = home.instance(name)
    _check_guarded(paths)
    exchange = Exchange.ask(paths, change)
    try:
        with _Interrupts(exchange) as interrupts:
            answer = _follow(paths, exchange, progress(), interrupts)
        if answer is None:
            note(f"The guardian goes on with the {change}: see ts-mps status and ts-mps events.")
            return 128 + signal.SIGINT
    finally:
        exchange.clear()
    if answer.state == "ended" and interrupts.count:
        note(answer.error)
        return 128 + signal.SIGINT
    answer.raise_error()
    if as_json:
        print_json({"version": RESULT_VERSION, "instance": name, **asdict(change), "said": list(answer.said)})
    else:
        show(f"Instance {name}: {change} is done.")
    return 0


def _check_guarded(paths: InstancePaths) -> None:
    state = load_state(paths)
    if state is None or (state.phase in ("stopped", "failed") and not guardian_lives(paths)):
        raise NotRunningError(f"Instance {paths.name} is not running.", "Start it first: ts-mps start")
    if not guardian_lives(paths):
        raise NotRunningError(
            f"The guardian of instance {paths.name} is gone, and it alone changes an instance.",
            "The command of its start takes it over as it is; then ask again.",
        )
    if state.phase != "serving":
        raise NotRunningError(f"Instance {paths.name} is {state.phase}.", "Ask again when it serves.")


def _follow(
    paths: InstancePaths, exchange: Exchange, report: Callable[[str], None], interrupts: _Interrupts
) -> Answer | None:
    """Show every step until the end; None where nobody wants to wait for it any more."""
    shown = 0
    while True:
        # The lock before the answer: a guardian that ends says so first.
        guarded = guardian_lives(paths)
        answer = exchange.answered or Answer()
        for sentence in answer.said[shown:]:
            report(sentence)
        shown = len(answer.said)
        if answer.over:
            return answer
        if interrupts.count > 1:
            return None
        if not guarded:
            raise TsMpsError(
                f"The guardian of instance {paths.name} ended before the change did.",
                "See ts-mps status; the command of its start takes over what serves.",
            )
        time.sleep(PAUSE)


class _Interrupts:
    """While entered, Ctrl-C asks for an end between two workers; the second one leaves the guardian to it.

    Attributes:
        count: How often it came.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.count = 0

    def __enter__(self) -> _Interrupts:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self._exchange.wish_end()
            note("It ends between two workers. Ctrl-C once more leaves the guardian to it.")

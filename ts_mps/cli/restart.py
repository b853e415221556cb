"""``ts-mps restart``: the whole, drained and with the arguments of its start, or worker by worker."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ts_mps.cli.changing import change_instance
from ts_mps.cli.options import home_of, instance_parser
from ts_mps.cli.render import progress
from ts_mps.cli.status import show_started
from ts_mps.cli.stop import add_drain_option, stop_wholly
from ts_mps.errors import UsageError
from ts_mps.guardian.again import command_of, start_again
from ts_mps.guardian.change.exchange import Change
from ts_mps.paths import Home


def parser() -> argparse.ArgumentParser:
    """The verb's options."""
    options = instance_parser(
        "restart",
        "Stop an instance, drained, and start it again with the same command, folder and environment. With --rolling "
        "TorchServe stays: every worker is replaced, one at a time, and no request is lost.",
    )
    options.add_argument("--rolling", action="store_true", help="worker by worker; never more than one of a model away")
    options.add_argument(
        "model", metavar="MODEL", nargs="?", default="", help="with --rolling: this model only (NAME or NAME/VERSION)"
    )
    add_drain_option(options, "without --rolling: ")
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parsed = parser().parse_args(arguments)
    home = home_of(parsed)
    if parsed.rolling:
        if parsed.drain_timeout is not None:
            raise UsageError("--drain-timeout is for a restart of the whole; --rolling waits for every batch.")
        return change_instance(home, parsed.name, Change("restart", parsed.model), as_json=parsed.json)
    if parsed.model:
        raise UsageError("One model is restarted with --rolling.", f"ts-mps restart --rolling {parsed.model}")
    return _restart_whole(home, parsed.name, parsed.drain_timeout, as_json=parsed.json)


def _restart_whole(home: Home, name: str, drain: float | None, *, as_json: bool) -> int:
    paths = home.instance(name)
    command = command_of(paths)  # before the stop: it is known as long as the guardian lives
    stop_wholly(home, name, drain, progress())
    code = start_again(command)
    if code:
        return code
    show_started(paths, as_json=as_json)
    return 0

"""``ts-mps stop``: drain, then TorchServe, then the daemons; nothing is left."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from ts_mps.cli.options import home_of, instance_parser
from ts_mps.cli.render import print_json, progress, show
from ts_mps.errors import TsMpsError, UsageError
from ts_mps.guardian.instance import RESULT_VERSION
from ts_mps.guardian.stop import stop
from ts_mps.paths import Home


def parser() -> argparse.ArgumentParser:
    """The verb's options."""
    options = instance_parser("stop", "Stop an instance. Asking twice does no harm; a killed guardian's work is done.")
    options.add_argument(
        "--drain-timeout",
        type=float,
        metavar="SECONDS",
        help="seconds that requests in flight get (default: what its start said)",
    )
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parsed = parser().parse_args(arguments)
    check_drain(parsed.drain_timeout)
    return stop_instance(home_of(parsed), parsed.name, parsed.drain_timeout, parsed.json)


def check_drain(seconds: float | None) -> None:
    """Make sure that ``--drain-timeout`` is a time: a drain until infinity, or until NaN, never ends.

    Raises:
        UsageError: It is none.
    """
    if seconds is not None and not 0 <= seconds < float("inf"):
        raise UsageError(f"--drain-timeout is '{seconds}', and it takes a number of seconds from 0 on.")


def stop_instance(home: Home, name: str, drain: float | None, as_json: bool, *, quiet: bool = False) -> int:
    """Stop and say what was done.

    Raises:
        TsMpsError: Something is left.
    """
    result = stop(home, home.instance(name), drain, (lambda text: None) if quiet else progress())
    if result.left:
        raise TsMpsError(f"Instance {name} was stopped, but not everything is gone.", details="\n".join(result.left))
    if quiet:
        return 0
    if as_json:
        print_json({"version": RESULT_VERSION, **asdict(result)})
    elif result.was_running:
        show(f"Instance {name} has stopped; nothing of it is left.")
    else:
        show(f"Instance {name} is not running.")
    return 0

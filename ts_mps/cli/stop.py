"""``ts-mps stop``: drain, then TorchServe, then the daemons; nothing is left."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict

from ts_mps.cli.options import home_of, instance_parser
from ts_mps.cli.render import print_json, progress, show
from ts_mps.errors import TsMpsError
from ts_mps.guardian.instance import RESULT_VERSION
from ts_mps.guardian.stop import StopResult, stop
from ts_mps.paths import Home
from ts_mps.torchserve.options import seconds


def parser() -> argparse.ArgumentParser:
    """The verb's options."""
    options = instance_parser("stop", "Stop an instance. Asking twice does no harm; a killed guardian's work is done.")
    add_drain_option(options)
    return options


def add_drain_option(options: argparse.ArgumentParser, where: str = "") -> None:
    """``--drain-timeout``; ``where``: when it counts, in a few words before its help."""
    options.add_argument(
        "--drain-timeout",
        type=seconds(0),
        metavar="SECONDS",
        help=f"{where}seconds that requests in flight get (default: what its start said)",
    )


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parsed = parser().parse_args(arguments)
    return stop_instance(home_of(parsed), parsed.name, parsed.drain_timeout, parsed.json)


def stop_instance(home: Home, name: str, drain: float | None, as_json: bool, *, quiet: bool = False) -> int:
    """Stop and say what was done.

    Raises:
        TsMpsError: Something is left.
    """
    result = stop_wholly(home, name, drain, (lambda text: None) if quiet else progress())
    if quiet:
        return 0
    if as_json:
        print_json({"version": RESULT_VERSION, **asdict(result)})
    elif result.was_running:
        show(f"Instance {name} has stopped; nothing of it is left.")
    else:
        show(f"Instance {name} is not running.")
    return 0


def stop_wholly(home: Home, name: str, drain: float | None, report: Callable[[str], None]) -> StopResult:
    """Stop and make sure that nothing is left.

    Raises:
        TsMpsError: Something is.
    """
    result = stop(home, home.instance(name), drain, report)
    if result.left:
        raise TsMpsError(f"Instance {name} was stopped, but not everything is gone.", details="\n".join(result.left))
    return result

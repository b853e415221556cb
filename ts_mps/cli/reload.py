"""``ts-mps reload``: what plan file or settings say now, put in force without losing a request."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ts_mps.cli.changing import change_instance
from ts_mps.cli.options import home_of, instance_parser
from ts_mps.guardian.change.exchange import Change


def parser() -> argparse.ArgumentParser:
    """The verb's options."""
    options = instance_parser(
        "reload",
        "Put in force what the plan file or the settings of the start say now: models whose workers change are scaled, "
        "or replaced one worker at a time. What only a restart can change is refused before anything is touched. "
        "SIGHUP to the guardian does the same.",
    )
    options.add_argument(
        "--plan", metavar="FILE", help="another plan that `ts-mps plan -o` wrote, in place of what the start named"
    )
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parsed = parser().parse_args(arguments)
    # The guardian's working folder is another one.
    file = str(Path(parsed.plan).absolute()) if parsed.plan else ""
    return change_instance(home_of(parsed), parsed.name, Change("reload", plan=file), as_json=parsed.json)

"""``ts-mps scale``: another number of workers of one model, as the plan allows it, without losing a request."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ts_mps.cli.changing import change_instance
from ts_mps.cli.options import home_of, instance_parser
from ts_mps.errors import UsageError
from ts_mps.guardian.change.exchange import Change


def parser() -> argparse.ArgumentParser:
    """The verb's options."""
    options = instance_parser(
        "scale",
        "Give a model of a running instance more workers or fewer. What does not fit is refused, with the constraint "
        "and the nearest that does. It holds until the next start or reload.",
    )
    options.add_argument("model", metavar="MODEL", help="registered name; NAME/VERSION where it has several versions")
    options.add_argument("workers", metavar="N", type=int, help="workers over all GPUs, from 1 on")
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parsed = parser().parse_args(arguments)
    if parsed.workers < 1:
        raise UsageError(f"{parsed.workers} workers of a model cannot be had.", "Give a number from 1 on.")
    change = Change("scale", parsed.model, parsed.workers)
    return change_instance(home_of(parsed), parsed.name, change, as_json=parsed.json)

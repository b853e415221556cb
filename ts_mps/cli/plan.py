"""``ts-mps plan``: how many workers, on which GPU, with what share, and why; nothing is started."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ts_mps.cli.options import VerbParser
from ts_mps.cli.output import check_writable, file_option, write_result
from ts_mps.cli.plan_text import plan_text
from ts_mps.cli.render import note, print_json, show
from ts_mps.errors import UsageError
from ts_mps.gpu.machine import machine_json
from ts_mps.guardian.proposal import Percentages, propose, this_machine
from ts_mps.plan.facts import PERCENTAGE_POLICIES
from ts_mps.torchserve.arguments import help_parser, parse

_COMMAND = "ts-mps plan"
#: Options of a start that say nothing to a plan; they are taken, so that one can put `plan` for `start`, and not shown.
_SILENT = (
    "--start",
    "--stop",
    "--foreground",
    "--log-config",
    "--cpp-log-config",
    "--plugins-path",
    "--disable-token-auth",
    "--enable-model-api",
    "--workflow-store",
    "--exclusive",
    "--wait-timeout",
    "--drain-timeout",
    "--name",
    "--plan",
    "--version",
)


def parser() -> argparse.ArgumentParser:
    """The options of ``ts-mps start`` that say what is served, and the verb's own."""
    options = help_parser()
    options.prog = _COMMAND
    # argparse cannot write a usage line with options that are not shown: it stumbles over their empty groups.
    options.usage = f"{_COMMAND} --model-store DIR --models NAME.mar [NAME.mar ...] [options]"
    options.description = (
        "Say how many workers each model gets, on which GPU, with what share, and why, as `ts-mps start --plan auto` "
        "with the same options would run them. Nothing is started. The other options of `ts-mps start` may stand "
        "there, too."
    )
    for action in options._actions:
        if any(name in _SILENT for name in action.option_strings):
            action.help = argparse.SUPPRESS
    _add_own(options.add_argument_group("the plan"))
    return options


def _add_own(group: Any) -> None:
    group.add_argument(
        "--percentages",
        type=_percentages,
        metavar="none|even|overlap|N",
        help="thread percentages of the n workers on a GPU: none; even: 100/n each; overlap: 100/(0.5 n) each; a "
        "number: that for all; beats the settings",
    )
    group.add_argument(
        "--inventory",
        metavar="FILE",
        type=file_option,
        help="plan for the machine that this file describes instead of this one",
    )
    group.add_argument(
        "--print-inventory", action="store_true", help="print this machine as such a file, or write it with -o"
    )
    group.add_argument(
        "-o", "--output", metavar="FILE", type=file_option, help="write the plan for `ts-mps start --plan FILE`"
    )


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    own = VerbParser(prog=_COMMAND, add_help=False, allow_abbrev=False)
    _add_own(own)
    ours, rest = own.parse_known_args(list(arguments))
    # Whoever starts with TS_MPS_PLAN in the environment can still make a plan.
    environ = {name: value for name, value in os.environ.items() if name != "TS_MPS_PLAN"}
    parsed = parse(rest, environ, _COMMAND)
    if parsed.help:
        parser().print_help()
        return 0
    output: Path | None = ours.output
    what = "The inventory" if ours.print_inventory else "The plan"
    if output is not None:
        check_writable(output, what)
    if ours.print_inventory:
        if ours.inventory:
            raise UsageError(f"{_COMMAND}: --print-inventory prints this machine, and --inventory names another.")
        machine = this_machine(parsed, environ)
        if machine.inventory.problem:
            note(machine.inventory.problem)
        _deliver(machine_json(machine), output, what, as_json=output is None)
        return 0
    plan = propose(
        parsed,
        environ,
        Path.cwd(),
        inventory=ours.inventory,
        percentages=ours.percentages,
    )
    _deliver(plan.as_json(), output, what, as_json=parsed.json)
    if not parsed.json:
        show(plan_text(plan))
    return 0


def _deliver(value: dict[str, Any], output: Path | None, what: str, *, as_json: bool) -> None:
    if output is not None:
        write_result(output, what, value)
        note(f"Written: {output}.")
    if as_json:
        print_json(value)


def _percentages(text: str) -> Percentages:
    if text in PERCENTAGE_POLICIES and text != "fixed":
        return Percentages(text)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= 100:
        raise argparse.ArgumentTypeError(f"'{text}' is neither none, even or overlap nor a number above 0 up to 100")
    return Percentages("fixed", number)

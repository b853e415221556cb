"""``ts-mps start``: what ``torchserve`` was, with MPS."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ts.version import __version__ as torchserve_version

from ts_mps.cli.render import note, progress
from ts_mps.cli.status import show_started
from ts_mps.cli.stop import stop_instance
from ts_mps.events import Event
from ts_mps.guardian import background
from ts_mps.guardian.log import Log
from ts_mps.guardian.loop import Guardian
from ts_mps.guardian.prepare import Prepared, prepare
from ts_mps.guardian.takeover import take_over
from ts_mps.paths import resolve_home
from ts_mps.torchserve.arguments import help_parser, parse


def parser() -> argparse.ArgumentParser:
    """Both groups of options in one help."""
    return help_parser()


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parsed = parse(arguments, os.environ)
    if parsed.help:
        parser().print_help()
        return 0
    if parsed.version:
        print(f"TorchServe Version is {torchserve_version}")
        return 0
    if parsed.stop:
        return stop_instance(resolve_home(parsed.runtime_dir, os.environ, create=False), parsed.name, None, parsed.json)
    prepared = take_over(parsed, os.environ, Path.cwd()) or prepare(parsed, os.environ, Path.cwd())
    for sentence in prepared.notes:
        note(sentence)
    if parsed.foreground:
        report = progress()
        return Guardian(prepared, report, teller(report)).run(lambda: _announce(prepared))
    code = background.start(prepared, progress())
    if code == 0:
        _announce(prepared)
    return code


def teller(report: Callable[[str], None]) -> Callable[[Event], None]:
    """How a guardian in front tells events: sentences at a terminal; whole objects to whoever collects them."""
    if sys.stderr.isatty():
        return lambda event: report(event.text)
    return Log().event


def _announce(prepared: Prepared) -> None:
    show_started(prepared.paths, as_json=prepared.arguments.json)

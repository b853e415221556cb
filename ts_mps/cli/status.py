"""``ts-mps status``: what runs, and whether it is as planned."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from rich.live import Live

from ts_mps.cli.options import home_of, instance_parser
from ts_mps.cli.render import print_json, show, status_text
from ts_mps.errors import NotRunningError
from ts_mps.guardian.status import Status, look
from ts_mps.paths import InstancePaths

#: Seconds between two drawings; a look makes TorchServe start one nvidia-smi per worker.
REDRAW_EVERY = 2.0


def parser() -> argparse.ArgumentParser:
    """The verb's options."""
    options = instance_parser("status", "Show an instance. The exit code is 0 only if all is as planned.")
    options.add_argument("--watch", action="store_true", help="redraw every 2 s until Ctrl-C")
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parsed = parser().parse_args(arguments)
    home = home_of(parsed)
    paths = home.instance(parsed.name)
    status = _look(paths, [p.name for p in home.instances()])
    if parsed.watch:
        with Live(status_text(status), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(REDRAW_EVERY)
                status = look(paths) or status
                live.update(status_text(status), refresh=True)
    if parsed.json:
        print_json(status.as_json())
    else:
        show(status_text(status))
    return 0 if status.as_planned else NotRunningError.exit_code


def _look(paths: InstancePaths, known: list[str]) -> Status:
    status = look(paths)
    if status is None:
        others = f" Instances here: {', '.join(known)}." if known else ""
        raise NotRunningError(f"Instance {paths.name} has never been started in {paths.root.parent.parent}.{others}")
    return status

"""``ts-mps status``: what runs, and whether it is as planned; for probes, whether it is ready."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ts_mps.cli.options import home_of, instance_parser
from ts_mps.cli.render import print_json, show, status_text
from ts_mps.errors import NotReadyError, NotRunningError, UsageError
from ts_mps.guardian import readiness
from ts_mps.guardian.instance import Status
from ts_mps.guardian.state import load_state
from ts_mps.paths import Home, InstancePaths


def parser() -> argparse.ArgumentParser:
    """The verb's options."""
    options = instance_parser("status", "Show an instance. The exit code is 0 only if all is as planned.")
    either = options.add_mutually_exclusive_group()
    either.add_argument(
        "--watch",
        action="store_true",
        help="show readiness and each model's throughput every 2 s until Ctrl-C, and the rest every 10 s; lines where "
        "the output is no terminal, with --json one object a line",
    )
    either.add_argument(
        "--ready",
        action="store_true",
        help="for probes: exit code 0 only if TorchServe lives and each model has a worker that is ready and attached, "
        "else 7 and why; reads files only, and believes the guardian's look for 10 s",
    )
    options.add_argument(
        "--strict",
        action="store_true",
        help="with --ready: only if every planned worker is ready and attached, and none is held back",
    )
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    parsed = parser().parse_args(arguments)
    home = home_of(parsed)
    paths = home.instance(parsed.name)
    if parsed.ready:
        return _ready(paths, as_json=parsed.json, strict=parsed.strict)
    if parsed.strict:
        raise UsageError("--strict goes with --ready.")
    # A probe does not pay for what only these need.
    from ts_mps.cli.watch import watch
    from ts_mps.guardian.status import look

    if parsed.watch:
        if load_state(paths) is None:
            raise _unknown(home, paths)
        watch(paths, as_json=parsed.json)
        return 0
    status = look(paths)
    if status is None:
        raise _unknown(home, paths)
    _print(status, as_json=parsed.json)
    return 0 if status.as_planned else NotRunningError.exit_code


def show_started(paths: InstancePaths, *, as_json: bool) -> None:
    """Print what a start has brought up.

    Raises:
        NotReadyError: It is already gone again.
    """
    from ts_mps.guardian.status import look  # as above

    status = look(paths)
    if status is None:
        raise NotReadyError(f"The state file {paths.state} is gone.")
    _print(status, as_json=as_json)


def _print(status: Status, *, as_json: bool) -> None:
    if as_json:
        print_json(status.as_json())
    else:
        show(status_text(status))


def _unknown(home: Home, paths: InstancePaths) -> NotRunningError:
    known = [other.name for other in home.instances()]
    others = f" Instances here: {', '.join(known)}." if known else ""
    return NotRunningError(f"Instance {paths.name} has never been started in {home.root}.{others}")


def _ready(paths: InstancePaths, *, as_json: bool, strict: bool) -> int:
    seen = readiness.see(paths)
    reasons = readiness.not_ready(seen, strict=strict)
    if as_json:
        print_json(readiness.as_json(seen))
    elif reasons:
        print("\n".join(reasons))
    else:
        print("ready")
    return NotRunningError.exit_code if reasons else 0

"""``ts-mps doctor --probe-cap``: the one examination of the doctor that starts something."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict

from rich.markup import escape

from ts_mps.cli.interruptible import interruptible
from ts_mps.cli.options import VerbParser
from ts_mps.cli.render import print_json, progress, show
from ts_mps.doctor.cap import CapResult, measure_cap
from ts_mps.guardian.instance import RESULT_VERSION
from ts_mps.paths import resolve_home

FLAG = "--probe-cap"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the probe, for its own parser and for the doctor's help."""
    group = parser.add_argument_group("measuring the client cap, in place of the checks")
    group.add_argument(
        FLAG,
        action="store_true",
        help="hold MPS clients on one GPU until the driver refuses one, and keep the number for later plans; only on a "
        "GPU on which nothing serves (13 s on an H200)",
    )
    group.add_argument(
        "--gpu", type=int, metavar="N", help="the GPU, by nvidia-smi's index (default: the first visible)"
    )


def main(arguments: Sequence[str]) -> int:
    """Measure, keep, and say."""
    parser = VerbParser(prog="ts-mps doctor")
    add_options(parser)
    parser.add_argument("--runtime-dir", metavar="DIR", help="the runtime folder, which keeps the cap [TS_MPS_HOME]")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parsed = parser.parse_args(arguments)
    home = resolve_home(parsed.runtime_dir, os.environ)
    try:
        with interruptible() as caught:
            result = measure_cap(home, parsed.gpu, os.environ, (lambda text: None) if parsed.json else progress())
    except KeyboardInterrupt:
        return 128 + (caught[0] if caught else signal.SIGINT)
    if parsed.json:
        print_json({"version": RESULT_VERSION, **asdict(result)})
    else:
        _show(result)
    return 0


def _show(result: CapResult) -> None:
    probe = result.probe
    show(
        f"GPU {result.index} ({escape(probe.name)}, {probe.gpu}), driver {result.driver_version}, control binary "
        f"{probe.control_version}, CUDA_DEVICE_MAX_CONNECTIONS {probe.connections}:",
        f"{'' if probe.exact else 'at least '}[bold]{probe.held}[/] MPS clients of "
        f"{probe.bytes_per_client / 2**20:,.0f} MiB each, in {probe.seconds:.1f} s. {escape(probe.why)}",
        f"Kept in {escape(result.kept)}; plans on this driver and GPU use it from now on."
        if result.kept
        else "Nothing was kept, because the cap was not reached.",
    )

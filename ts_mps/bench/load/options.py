"""The command line of benchmarks/locustfile.py: what Locust's own options do not say."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from ts_mps.bench.load.bodies import given_bodies, read_bodies, write_bodies
from ts_mps.bench.load.spec import CHECKS, KINDS, Spec
from ts_mps.bench.load.workloads import known, prepare, workload
from ts_mps.bench.records import Load
from ts_mps.errors import UsageError
from ts_mps.files import read_json


def add_options(parser: Any) -> None:
    """Add ours to Locust's parser, whose arguments have a flag more: whether the web UI shows them."""
    group = parser.add_argument_group("TorchServe load (ts-mps)")

    def add(*flags: str, shown: bool = False, **settings: Any) -> None:
        group.add_argument(*flags, **settings).include_in_web_ui = shown

    add("--model", default="", metavar="NAME", help="the model that is asked (default: the workload's)")
    add("--payload", nargs="+", default=[], metavar="PATH", help="files with what clients send, or folders")
    add("--workload", default="", metavar="NAME", help=f"instead: made payloads; one of {', '.join(known()) or 'none'}")
    add("--content-type", default=None, help="of the payloads (default: application/json for .json, else none)")
    add("--token", default="", help="TorchServe's inference token")
    add("--load", choices=KINDS, default="closed", shown=True, help="each user has one request in flight, or arrivals")
    add("--rate", type=float, default=10.0, shown=True, help="arrivals per second of all processes (default: 10)")
    add("--warm-up", type=float, default=2.0, shown=True, help="seconds that are not counted (default: 2)")
    add("--seconds", type=float, default=0.0, shown=True, help="counted time; 0: until it is stopped (default)")
    add("--request-timeout", type=float, default=60.0, shown=True, help="seconds (default: 60)")
    add("--load-seed", type=int, default=0, shown=True, help="of arrivals and of the order of payloads (default: 0)")
    add("--check", choices=CHECKS, default="status", help="compare with answers that are recorded first, or not at all")
    # What `ts-mps bench` hands over instead of all of these. All values are strings and numbers, as Locust sends the
    # options to its workers.
    add("--spec", default="", help=argparse.SUPPRESS)
    add("--result", default="", help=argparse.SUPPRESS)


def the_spec(options: Any, users: int, processes: int, scratch: Path) -> Spec:
    """The load that the command line, or the web UI, asks for.

    Args:
        options: Locust's parsed options with ours.
        users: How many users Locust starts: the connections of a closed loop.
        processes: Processes that make the load.
        scratch: The folder with the payloads, and where recorded answers go.

    Raises:
        UsageError: It makes no sense.
    """
    if options.spec:
        spec = Spec.from_json(read_json(Path(options.spec)) or {})
        return replace(spec, processes=processes)
    if not options.host:
        raise UsageError("No server is named.", "Say --host http://127.0.0.1:8080.")
    model = options.model or (workload(options.workload).script if options.workload else "")
    if not model:
        raise UsageError("No model is named.", "Say --model NAME, the name that TorchServe serves it by.")
    closed = options.load == "closed"
    return Spec(
        base_url=options.host.rstrip("/"),
        path=f"/predictions/{model}",
        load=Load(
            kind=options.load,
            connections=users if closed else 0,
            rate=0.0 if closed else options.rate,
            seconds=options.seconds or math.inf,
            warm_up=options.warm_up,
            seed=options.load_seed,
        ),
        bodies=scratch / "bodies",
        processes=processes,
        timeout=options.request_timeout,
        check=options.check,
        references=scratch / "references.json",
        token=options.token,
    )


def write_the_bodies(options: Any, scratch: Path) -> None:
    """Put the payloads that the command line asks for where :func:`the_spec` says that they are.

    Raises:
        TsMpsError: There are none.
    """
    if options.spec:
        return
    if options.workload and options.payload:
        raise UsageError("--workload and --payload exclude each other: a workload has payloads of its own.")
    if options.workload:
        made = read_bodies(prepare(workload(options.workload), scratch / "workload").bodies)
    else:
        made = given_bodies([Path(path) for path in options.payload], options.content_type)
    write_bodies(scratch / "bodies", made)

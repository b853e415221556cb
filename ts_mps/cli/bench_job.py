"""From the options of ``ts-mps bench compare`` to what is measured; everything that is wrong is found here."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ts_mps.bench.arms import Wish, make_arms
from ts_mps.bench.bytecode import with_bytecode
from ts_mps.bench.compare import Job, bodies_digest, connections_for
from ts_mps.bench.conductor import Search
from ts_mps.bench.copies import BATCH_DELAY
from ts_mps.bench.cores import Division, core_siblings, divide, usable_cores
from ts_mps.bench.load import prepare, read_bodies, workload, write_bodies
from ts_mps.bench.load.bodies import given_bodies
from ts_mps.bench.machine import read_machine
from ts_mps.bench.records import Arm
from ts_mps.bench.site import Site
from ts_mps.errors import PreflightError, UsageError
from ts_mps.gpu.inventory import Gpu, read_inventory
from ts_mps.gpu.visible import select_gpus
from ts_mps.mps.control import require_binary
from ts_mps.torchserve.addresses import Address
from ts_mps.torchserve.archives import read_archive
from ts_mps.torchserve.digest import content_digest
from ts_mps.torchserve.ports import busy_ports
from ts_mps.torchserve.unpack import unpack

#: Looked for before minutes are spent, and not imported: Locust patches whoever imports it for gevent.
_NEEDED = ("locust", "scipy")
#: What is measured where the command line says nothing.
BLOCKS, SECONDS, WARM_UP = 6, 10.0, 5.0
_WORKERS = (1, 2, 4)
_BATCH_SIZE = 8


@dataclass(frozen=True)
class Place:
    """Where a study is made.

    Attributes:
        gpu: The GPU; None for a study on the CPU.
        division: Who runs on which cores.
        machine: What it is, ready for JSON.
        notes: What the user should know before it begins.
    """

    gpu: Gpu | None
    division: Division
    machine: Mapping[str, Any]
    notes: tuple[str, ...]


def read_place(options: argparse.Namespace) -> Place:
    """Look at the machine, and at what can be known before anything is made; with ``--tiny`` at no GPU.

    Raises:
        UsageError: Options contradict each other, or name nothing to serve.
        PreflightError: A package is missing, there is no such GPU, there are too few cores, or the port is taken.
        MpsError: There is a GPU, and no MPS control program.
    """
    check_packages(options.engine)
    _check_wishes(options)
    gpu, notes = (None, ()) if options.tiny else _gpu(options)
    division = divide(usable_cores(), options.generator_cores, near=gpu.cores if gpu else (), siblings=core_siblings())
    if options.port is not None:
        for busy in busy_ports([Address("inference_address", "127.0.0.1", options.port)]):
            raise PreflightError(
                f"--port {options.port}: it {busy.reason}{f' by {busy.holder}' if busy.holder else ''}.",
                "Name another one, or none: any free port does.",
            )
    machine = read_machine(division, [gpu] if gpu else [])
    if others := machine["others_on_gpus"]:
        notes += (f"Other processes use GPU {gpu.index if gpu else 0} ({others}): the figures will be theirs as well.",)
    if threads := os.environ.get("OMP_NUM_THREADS"):
        notes += (f"OMP_NUM_THREADS={threads} is set, and every worker of every server inherits it.",)
    return Place(gpu, division, machine, notes)


def check_packages(engines: Collection[str]) -> None:
    """Look for the packages that a study needs.

    Raises:
        PreflightError: One is missing.
    """
    needed = dict.fromkeys(_NEEDED, "bench")
    if "litserve" in engines:
        needed["litserve"] = "peers"
    for package, extra in needed.items():
        if importlib.util.find_spec(package) is None:
            raise PreflightError(
                f"`ts-mps bench` needs the package {package}, which is not installed.",
                f"Run: pip install 'ts-mps[{extra}]'",
            )


def make_job(options: argparse.Namespace, place: Place, scratch: Path) -> Job:
    """Everything that is measured.

    Args:
        options: As parsed.
        place: Where.
        scratch: A folder for what is made; it lives as long as the study runs.

    Raises:
        TsMpsError: The archive or a payload cannot be used, or a workload cannot be built.
    """
    served = _served(options, scratch)
    delay = options.batch_delay
    if delay is None:
        delay = read_archive(served.archive).integer("maxBatchDelay")
    delay = BATCH_DELAY if delay is None else delay
    on_gpu = place.gpu is not None
    both = on_gpu and options.mps == "both"
    arms = make_arms(
        Wish(
            workers=options.workers or _WORKERS,
            batch_sizes=options.batch_sizes or served.batch_sizes,
            percentages=options.percentages if both else (),
            mps=both,
            device="gpu" if on_gpu else "cpu",
            ceiling=options.ceiling,
            engines=options.engine,
            options={"max_batch_delay": str(delay)},
        )
    )
    load = Measured(
        blocks=options.blocks or BLOCKS,
        seconds=options.seconds or SECONDS,
        warm_up=WARM_UP if options.warm_up is None else options.warm_up,
        connections=options.connections or connections_for(arms),
    )
    title = f"{served.name}: MPS on against off" if both else f"{served.name}: workers and batch sizes"
    return job_of(options, place, scratch, served, title=title, arms=arms, load=load)


@dataclass(frozen=True)
class Measured:
    """How long and how hard; see :class:`ts_mps.bench.compare.Job`."""

    blocks: int
    seconds: float
    warm_up: float
    connections: int


@dataclass(frozen=True)
class Served:
    """What is served and sent: a named workload, or the user's own.

    Attributes:
        name: For the title.
        archive: A file or a folder.
        bodies: Folder of payloads.
        batch_sizes: Where the command line says none.
        check: Where the command line says none.
    """

    name: str
    archive: Path
    bodies: Path
    batch_sizes: tuple[int, ...]
    check: str


def job_of(
    options: argparse.Namespace,
    place: Place,
    scratch: Path,
    served: Served,
    *,
    title: str,
    arms: tuple[Arm, ...],
    load: Measured,
    kind: str = "compare",
) -> Job:
    """The job of arms and a load that are decided on.

    Raises:
        TsMpsError: The archive cannot be used, or LitServe cannot be sent these payloads.
    """
    model = read_archive(served.archive).name or "model"
    folder = scratch / "archive"
    folder.mkdir()
    check = options.check or served.check
    delays = sorted({int(arm.options["max_batch_delay"]) for arm in arms})
    return Job(
        title=title,
        workload={
            "name": served.name,
            "model": model,
            "archive_sha256": content_digest(served.archive),
            "payloads": len(list(served.bodies.iterdir())) - 1,
            "payloads_sha256": bodies_digest(served.bodies),
            "batch_delay_ms": delays[0] if len(delays) == 1 else delays,
            "check": check,
        },
        arms=arms,
        site=Site(
            model=model,
            archive=unpack(served.archive, folder),
            gpu=place.gpu,
            cores=place.division.server,
            environ=with_bytecode(os.environ, scratch / "bytecode"),
            ready_timeout=options.ready_timeout,
            port=options.port,
            content_type=_content_type(served.bodies, arms),
        ),
        bodies=served.bodies,
        scratch=scratch,
        division=place.division,
        blocks=load.blocks,
        seconds=load.seconds,
        warm_up=load.warm_up,
        seed=options.seed,
        connections=load.connections,
        processes=options.processes or len(place.division.generator),
        check=check,
        timeout=options.timeout,
        search=Search(options.slo_ms, options.slo_steps) if options.slo_ms else None,
        kind=kind,
    )


def _content_type(bodies: Path, arms: Sequence[Arm]) -> str:
    types = sorted({body.content_type or "" for body in read_bodies(bodies)})
    if len(types) > 1 and any(arm.engine == "litserve" for arm in arms):
        raise PreflightError(
            f"LitServe takes payloads of one content type, and these have {len(types)}: {', '.join(types)}.",
            "Measure each in a study of its own, or leave litserve out of --engine.",
        )
    return types[0]


def _served(options: argparse.Namespace, scratch: Path) -> Served:
    if options.workload:
        found = workload(options.workload)
        made = prepare(found, (options.work or scratch) / options.workload)
        sizes = (_BATCH_SIZE,) if _BATCH_SIZE in found.batch_sizes else found.batch_sizes[-1:]
        return Served(options.workload, made.archive, made.bodies, sizes, found.check)
    requests = given_bodies(options.payload, options.content_type)
    bodies = write_bodies(scratch / "bodies", requests)
    return Served(options.archive.name, options.archive, bodies, (_BATCH_SIZE,), "status")


def _check_wishes(options: argparse.Namespace) -> None:
    if options.reproduce:
        return
    if options.workload and (options.archive or options.payload):
        raise UsageError(
            "--workload and --archive exclude each other: a workload has a model and payloads of its own.",
            "Leave one of them out.",
        )
    if options.workload:
        workload(options.workload)  # an unknown one is refused before anything is looked at
        return
    if options.archive is None:
        raise UsageError("Nothing is named to be served.", "Name --workload NAME, or --archive A --payload FILE.")
    read_archive(options.archive)
    given_bodies(options.payload, options.content_type)


def _gpu(options: argparse.Namespace) -> tuple[Gpu | None, tuple[str, ...]]:
    """The GPU that was asked for, else the first visible one; None where there is none, with a note that says so."""
    inventory = read_inventory()
    visible = select_gpus(inventory, os.environ.get("CUDA_VISIBLE_DEVICES"), None)
    found = visible if options.gpu is None else tuple(gpu for gpu in inventory.gpus if gpu.index == options.gpu)
    if not found:
        if options.gpu is not None:
            raise PreflightError(f"--gpu {options.gpu}: this machine has no such GPU.", inventory.problem)
        why = inventory.problem or "CUDA_VISIBLE_DEVICES hides every GPU."
        return None, (f"{why} The arms run on the CPU and differ in workers and batch size, without MPS.",)
    if found[0].mig_enabled:
        raise PreflightError(
            f"GPU {found[0].index} ({found[0].name}) is in MIG mode, in which studies cannot be made.",
            "Choose another one with --gpu INDEX.",
        )
    if options.mps == "both":
        require_binary(os.environ)
    return found[0], ()

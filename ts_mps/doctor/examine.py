"""All checks, in the order in which a start would meet them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ts_mps.doctor.findings import Finding, Findings
from ts_mps.doctor.gpus import check_exclusive, check_gpus
from ts_mps.doctor.machine import check_home, check_java, check_limits, check_python
from ts_mps.doctor.neighbours import check_foreign_mps
from ts_mps.doctor.server import check_config, check_files, check_instance, check_ports, check_security
from ts_mps.gpu.inventory import Gpu, read_inventory
from ts_mps.guardian.choice import MpsChoice, check_manageable
from ts_mps.guardian.planning import Ground, plan_start, read_ground
from ts_mps.guardian.prepare import check_key_file, find_models
from ts_mps.paths import Home
from ts_mps.plan.model import Plan
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.models import ModelRequest
from ts_mps.torchserve.server_config import ServerConfig


def examine(arguments: StartArguments, environ: Mapping[str, str], folder: Path) -> tuple[Finding, ...]:
    """Look at everything that a start with these arguments would meet.

    Args:
        arguments: What the start would be asked for.
        environ: Environment of the caller.
        folder: The working folder, from which the start would be made.

    Raises:
        UsageError: ``--name`` is no name.
    """
    found = Findings()
    check_python(found)
    check_java(found, environ)
    home = check_home(found, arguments, environ)
    running = home is not None and check_instance(found, arguments, home)
    store = check_files(found, arguments, environ)
    config = check_config(found, arguments, environ)
    if config is None:
        found.warn(
            "not checked",
            "GPUs, models, ports and addresses were not looked at, because they depend on the configuration.",
            "Correct the configuration, then run ts-mps doctor again.",
        )
    else:
        ground = found.attempt("planning", lambda: read_ground(arguments, environ, folder), _rests_on)
        gpus, mps = check_gpus(found, ground.mps_wish if ground else arguments.mps, config, environ, home)
        if mps is not None and mps.on:
            check_exclusive(found, arguments, gpus, mps)
            check_foreign_mps(found, home, gpus, mps, environ)
        if store:
            _models_and_plan(found, arguments, config, ground, home, gpus, mps, environ)
        check_ports(found, config, running)
        check_security(found, config)
        if home is not None and config.token_auth:
            paths = home.instance(arguments.name)
            found.attempt(
                "token keys",
                lambda: check_key_file(config, home, paths, folder),
                lambda _: f"TorchServe's keys go to {folder / 'key_file.json'}, which no other instance here uses.",
            )
    check_limits(found, environ)
    return tuple(found.all)


def _models_and_plan(
    found: Findings,
    arguments: StartArguments,
    config: ServerConfig,
    ground: Ground | None,
    home: Home | None,
    gpus: tuple[Gpu, ...],
    mps: MpsChoice | None,
    environ: Mapping[str, str],
) -> None:
    """Every archive that would be loaded, and whether the workers find room."""
    models = found.attempt("models", lambda: find_models(arguments, config, gpus), _described)
    if not models or ground is None or mps is None or home is None:
        return

    def plan() -> Plan:
        planned = plan_start(ground, read_inventory(), gpus, mps, models, arguments, home, environ)
        check_manageable(planned.models, config, planned.mps)
        return planned.plan

    found.attempt("plan", plan, _placed)


def _rests_on(ground: Ground) -> str:
    if ground.plan is not None:
        return f"The start follows the plan {ground.path}."
    if ground.settings.path is not None:
        return f"The planner follows the settings {ground.settings.path}."
    return "The planner's defaults, without a settings file."


def _described(models: tuple[ModelRequest, ...]) -> str:
    if not models:
        return "None is loaded at the start."
    return "; ".join(f"{' '.join(filter(None, (m.name, m.version)))}: {m.workers} worker(s)" for m in models)


def _placed(plan: Plan) -> str:
    counts = Counter(slot.gpu for slot in plan.slots)
    places = [
        f"{counts[gpu.uuid]} worker(s) on GPU {gpu.index}" + (f", which takes {gpu.cap} MPS clients" if gpu.cap else "")
        for gpu in plan.gpus
        if counts[gpu.uuid]
    ]
    return "; ".join([*places, *([f"{counts[None]} worker(s) on the CPU"] if counts[None] else [])]) + "."

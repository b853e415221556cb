"""The plan that a start would follow, for this machine or for one that a file describes; nothing is started or made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ts_mps.errors import MpsError, PreflightError, UsageError
from ts_mps.gpu.inventory import Gpu, read_inventory
from ts_mps.gpu.machine import MachineFacts, read_machine_file
from ts_mps.guardian.choice import MpsChoice, check_manageable, choose_mps, visible_gpus
from ts_mps.guardian.planning import decide, mps_of, mps_wish
from ts_mps.guardian.prepare import Findings
from ts_mps.guardian.site import read_machine, site_here, site_of
from ts_mps.mps.control import binary_version, find_binary
from ts_mps.paths import Home, resolve_home
from ts_mps.plan.model import Plan
from ts_mps.settings import Settings, find_settings, read_settings
from ts_mps.torchserve import config as configuration
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.models import ModelRequest, requested_models
from ts_mps.torchserve.registration import Machine
from ts_mps.torchserve.server_config import ServerConfig

_MIG_WARNING = "The plan is for MIG instances, on which ts-mps start does not serve yet: it was not tried on hardware."


@dataclass(frozen=True)
class Percentages:
    """``--percentages``: how thread percentages are given out.

    Attributes:
        policy: One of :data:`ts_mps.plan.facts.PERCENTAGE_POLICIES`.
        percentage: In (0, 100], for "fixed" only.
    """

    policy: str
    percentage: float | None = None


def this_machine(arguments: StartArguments, environ: Mapping[str, str]) -> MachineFacts:
    """The machine that one sits at, as ``--print-inventory`` writes it.

    Raises:
        MpsError: The control program cannot be run.
        PreflightError: The runtime folder, where measured caps lie, is not ours.
    """
    binary = find_binary(environ)
    version = binary_version(binary) if binary else 0
    return read_machine(read_inventory(), version, _home(arguments, environ), environ)


def propose(
    arguments: StartArguments,
    environ: Mapping[str, str],
    folder: Path,
    *,
    inventory: Path | None = None,
    percentages: Percentages | None = None,
) -> Plan:
    """What ``ts-mps start --plan auto`` with the same options would run.

    Args:
        arguments: The options of the start.
        environ: The environment of the caller.
        folder: The working folder.
        inventory: A file that describes the machine; None for this one.
        percentages: Beats the settings' policy.

    Raises:
        TsMpsError: A file cannot be used, a model cannot be loaded, or what is asked for does not fit.
    """
    if arguments.plan is not None:
        raise UsageError("--plan is for ts-mps start; ts-mps plan makes a plan.", "Write it with -o FILE.")
    if inventory is not None:
        # The last snapshot in this folder is of this machine: its number_of_gpu says nothing of another one.
        arguments = replace(arguments, no_config_snapshots=True)
    findings = Findings()
    config = configuration.load(arguments, environ)
    findings.errors += configuration.check(config)
    settings = findings.check(lambda: _settings(arguments, environ, folder, percentages))
    machine = findings.check(lambda: read_machine_file(inventory) if inventory else this_machine(arguments, environ))
    findings.stop_if_any()
    assert settings is not None and machine is not None  # nothing was found, so both are there
    gpus = _gpus(machine, config, environ, elsewhere=inventory is not None)
    _check_usable(gpus)
    wish = mps_wish(arguments, settings)
    if inventory is not None or any(gpu.mig_enabled for gpu in gpus):
        mps = _assumed_mps(wish, gpus, machine)
        site = site_of(machine, gpus, environ, affinity=arguments.cpu_affinity)
    else:
        mps = choose_mps(wish, machine.inventory, gpus, environ)
        machine = replace(machine, control_version=mps.version)
        site = site_here(machine.inventory, gpus, mps, arguments.cpu_affinity, _home(arguments, environ), environ)
    models = _models(arguments, config, Machine(gpus=len(site.gpus), cpus=_processors(machine, inventory)))
    plan = decide(site, models, mps, settings, arguments, auto=True)
    check_manageable(models, config, mps_of(plan, mps))
    if any(gpu.uuid.startswith("MIG-") for gpu in plan.gpus):
        plan = replace(plan, warnings=(*plan.warnings, _MIG_WARNING))
    return plan


def _home(arguments: StartArguments, environ: Mapping[str, str]) -> Home:
    return resolve_home(arguments.runtime_dir, environ, create=False)


def _settings(
    arguments: StartArguments, environ: Mapping[str, str], folder: Path, percentages: Percentages | None
) -> Settings:
    settings = read_settings(find_settings(arguments.settings, environ, folder))
    if percentages is None:
        return settings
    policy = replace(settings.policy, percentages=percentages.policy, percentage=percentages.percentage)
    return replace(settings, policy=policy)


def _gpus(
    machine: MachineFacts, config: ServerConfig, environ: Mapping[str, str], *, elsewhere: bool
) -> tuple[Gpu, ...]:
    """Which GPUs are in use. CUDA_VISIBLE_DEVICES speaks of this machine, not of one in a file."""
    if not elsewhere:
        return visible_gpus(machine.inventory, config, environ)
    return visible_gpus(machine.inventory, config, {})


def _check_usable(gpus: tuple[Gpu, ...]) -> None:
    for gpu in gpus:
        if gpu.compute_mode == "Prohibited":
            raise PreflightError(
                f"GPU {gpu.index} ({gpu.name}) is in compute mode Prohibited: no process can use it.",
                f"There, as root: nvidia-smi -i {gpu.index} -c DEFAULT; or leave the GPU out.",
            )


def _assumed_mps(wish: str, gpus: tuple[Gpu, ...], machine: MachineFacts) -> MpsChoice:
    """MPS on a machine where it cannot be tried."""
    if wish == "off":
        return MpsChoice(False, "MPS is off as asked (--mps off, or mps in the settings).")
    if not gpus:
        if wish == "on":
            raise MpsError("--mps on, but number_of_gpu leaves no GPU of the inventory.", "Raise number_of_gpu.")
        return MpsChoice(False, "MPS is off: number_of_gpu leaves no GPU of the inventory.")
    version = machine.control_version
    binary = f"control binary {version}" if version else "a control binary whose version is not known"
    return MpsChoice(True, f"MPS is on, one control daemon for each of {len(gpus)} GPU(s), {binary}.", None, version)


def _models(arguments: StartArguments, config: ServerConfig, machine: Machine) -> tuple[ModelRequest, ...]:
    store = arguments.model_store or config.resolved.get("model_store")
    if store is None:
        raise UsageError("There is no model store.", "Name it: --model-store, or model_store in config.properties.")
    models = requested_models(
        config.resolved, models=arguments.models, model_store=Path(store), workers=arguments.workers, machine=machine
    )
    if not models:
        raise UsageError(
            "There is no model to plan for.", "Name some: --models NAME.mar, or load_models in config.properties."
        )
    return models


def _processors(machine: MachineFacts, inventory: Path | None) -> int:
    """What Java will count: os.cpu_count() as a start takes it, or the cores in the file."""
    return len(machine.cores) if inventory is not None else os.cpu_count() or 1

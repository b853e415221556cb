"""The plan that a change asks for, made for a machine on which the instance itself is at work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ts_mps.errors import UsageError
from ts_mps.gpu.inventory import read_inventory
from ts_mps.guardian.change.merge import Key, keys, slots_of
from ts_mps.guardian.plan_file import fit
from ts_mps.guardian.planning import AUTO, decide, read_ground
from ts_mps.guardian.prepare import Prepared
from ts_mps.guardian.site import Site, site_here
from ts_mps.plan.facts import SERVER_BYTES, GpuFacts
from ts_mps.plan.model import Plan
from ts_mps.seats import seat_holders
from ts_mps.settings import MemorySettings, ModelSettings, Settings
from ts_mps.torchserve import config as configuration
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.models import WORKERS_FLAG
from ts_mps.torchserve.registration import Number

_RESTART = "Restart the whole for that: ts-mps restart."


def named(plan: Plan, model: str) -> Key:
    """The model that a change is about.

    Args:
        plan: The plan in force.
        model: NAME, or NAME/VERSION where it has several versions.

    Raises:
        UsageError: There is none, or there are several.
    """
    found = [key for key in keys(plan) if model in (key[0], f"{key[0]}/{key[1]}")]
    if len(found) == 1:
        return found[0]
    if found:
        versions = ", ".join(f"{name}/{version}" for name, version in found)
        raise UsageError(f"Model {model} has several versions.", f"Name one: {versions}.")
    there = ", ".join(name for name, _ in keys(plan))
    raise UsageError(f"This instance has no workers of a model {model}.", f"It has some of: {there or 'none'}.")


def rescaled(prepared: Prepared, plan: Plan, model: Key, workers: int) -> Plan:
    """The plan with another number of workers of one model and as many as now of the others.

    Raises:
        PlanError: They do not fit; it names the constraint, and the nearest that does fit.
    """
    counts = {**{key: len(slots_of(plan, key)) for key in keys(plan)}, model: workers}
    numbers = [counts.get((one.name, one.version or None), 0) for one in prepared.models]
    models = tuple(
        replace(one, workers=number, asked=Number(number, WORKERS_FLAG))
        for one, number in zip(prepared.models, numbers, strict=True)
    )
    ground = read_ground(prepared.arguments, prepared.environ, prepared.folder)
    settings = _of_plan(plan) if ground.plan is not None else ground.settings
    # Whether MPS is used is not asked again.
    settings = replace(settings, mps="on" if plan.mps else "off")
    mps = replace(prepared.mps, on=plan.mps)
    auto = prepared.arguments.plan == AUTO
    return decide(live_site(prepared, plan), models, mps, settings, prepared.arguments, auto=auto)


def reread(prepared: Prepared, plan: Plan, file: str) -> Plan:
    """The plan that the start's plan file or settings give now, or another plan file.

    Args:
        prepared: The start.
        plan: The plan in force.
        file: The plan file; empty for what the start named.

    Raises:
        UsageError: What changed can only be changed by a restart, or a file is not there.
        PlanError: It does not fit, or is not for this machine and these models.
        PreflightError: The settings cannot be used.
    """
    arguments = _with_plan(prepared.arguments, file) if file else prepared.arguments
    _check_config(prepared)
    ground = read_ground(arguments, prepared.environ, prepared.folder)
    if ground.mps_wish == ("off" if plan.mps else "on"):
        raise UsageError(f"MPS cannot be turned {ground.mps_wish} while the instance serves.", _RESTART)
    site = live_site(prepared, plan)
    if ground.plan is not None:
        new = fit(ground.plan, ground.path, site, prepared.models)
    else:
        mps = replace(prepared.mps, on=plan.mps)
        new = decide(site, prepared.models, mps, ground.settings, arguments, auto=arguments.plan == AUTO)
    if new.mps != plan.mps:
        raise UsageError(f"The new plan is {'with' if new.mps else 'without'} MPS: {new.mps_why}", _RESTART)
    if {gpu.uuid for gpu in new.gpus} != {gpu.uuid for gpu in plan.gpus}:
        raise UsageError("The new plan is for other GPUs than those in use.", _RESTART)
    for key in keys(plan):
        if not slots_of(new, key):
            raise UsageError(f"The new plan has no worker of model {key[0]}.", _RESTART)
    return new


def live_site(prepared: Prepared, plan: Plan) -> Site:
    """The machine without what the instance itself takes of it."""
    inventory = read_inventory()
    used = [gpu.uuid for gpu in prepared.gpus]
    gpus = tuple(sorted((gpu for gpu in inventory.gpus if gpu.uuid in used), key=lambda gpu: used.index(gpu.uuid)))
    mps = replace(prepared.mps, on=plan.mps)
    site = site_here(inventory, gpus, mps, prepared.arguments.cpu_affinity, prepared.home, prepared.environ)
    return replace(site, gpus=tuple(_without_us(gpu, prepared, plan) for gpu in site.gpus))


def _without_us(gpu: GpuFacts, prepared: Prepared, plan: Plan) -> GpuFacts:
    """Our workers' seats are known; of their memory only what was planned, as NVML does not tell what a client has."""
    planned = next((one for one in plan.gpus if one.uuid == gpu.uuid), None)
    if planned is None:
        return gpu
    holders = seat_holders(prepared.home.gpu(gpu.uuid))
    ours = sum(holder.get("instance") == prepared.paths.name for holder in holders)
    memory = planned.memory_planned + (SERVER_BYTES if plan.mps else 0)
    return replace(gpu, attached=max(0, gpu.attached - ours), memory_taken=max(0, gpu.memory_taken - memory))


def _of_plan(plan: Plan) -> Settings:
    """What a plan file says of memory, in the form in which settings say it; its shares stay with the slots."""
    models: Mapping[str, ModelSettings] = {
        model.name: ModelSettings(memory=MemorySettings(context=0, weights=model.memory, peak=0))
        for model in plan.models
        if model.memory and model.memory_source in ("profile", "config")
    }
    reserve = max((gpu.reserve for gpu in plan.gpus), default=0)
    settings = Settings(models=models)
    return replace(settings, policy=replace(settings.policy, reserve=reserve)) if plan.gpus else settings


def _with_plan(arguments: StartArguments, file: str) -> StartArguments:
    """The start's arguments with another plan, which says all that these flags say."""
    return replace(arguments, plan=file, workers=(), reserve=None, settings=None, mps="auto")


def _check_config(prepared: Prepared) -> None:
    """TorchServe reads its configuration when it starts, and never again.

    Raises:
        UsageError: It is not what it was then.
    """
    if prepared.config.snapshot is not None:
        return  # TorchServe writes a snapshot after every scaling
    now = configuration.load(prepared.arguments, prepared.environ)
    before = prepared.config.resolved
    changed = sorted(key for key in {*now.resolved, *before} if now.resolved.get(key) != before.get(key))
    if changed:
        raise UsageError(
            f"TorchServe's configuration is not what it was at its start ({', '.join(changed)}), and it reads it only "
            "then.",
            _RESTART,
        )

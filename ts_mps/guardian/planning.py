"""From facts to the plan of one instance: the planner's own, or one from a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ts_mps.errors import MpsError
from ts_mps.gpu.inventory import Gpu, Inventory
from ts_mps.guardian.choice import MPS_SENTENCE, MpsChoice
from ts_mps.guardian.plan_file import check_arguments, fit, read_plan, short_memory
from ts_mps.guardian.site import Site, site_here
from ts_mps.guardian.wishes import model_facts
from ts_mps.paths import Home
from ts_mps.plan.facts import Facts, Policy
from ts_mps.plan.model import Plan, PlannedGpu
from ts_mps.plan.planner import make_plan
from ts_mps.settings import Settings, find_settings, read_settings
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.models import ModelRequest

#: The value of ``--plan`` that asks for a plan to be made at the start.
AUTO = "auto"


@dataclass(frozen=True)
class Ground:
    """What the plan of a start rests on beside the machine and the models.

    Attributes:
        settings: What ts-mps.toml says; all defaults under a plan file, which holds every decision itself.
        plan: The plan file that ``--plan`` names; None without one.
        path: Where that came from.
        mps_wish: "auto", "on" or "off".
    """

    settings: Settings
    plan: Plan | None
    path: Path
    mps_wish: str


@dataclass(frozen=True)
class Planned:
    """What is decided for a start: the plan, and what follows from it."""

    plan: Plan
    mps: MpsChoice
    models: tuple[ModelRequest, ...]
    notes: tuple[str, ...]


def read_ground(arguments: StartArguments, environ: Mapping[str, str], folder: Path) -> Ground:
    """Read the plan file that was asked for, else the settings.

    Raises:
        TsMpsError: A file cannot be used, or a flag contradicts the plan file.
    """
    if arguments.plan is None or arguments.plan == AUTO:
        settings = read_settings(find_settings(arguments.settings, environ, folder))
        return Ground(settings, None, folder, mps_wish(arguments, settings))
    path = Path(arguments.plan)
    plan = read_plan(folder / path)
    check_arguments(arguments, path, plan)
    return Ground(Settings(), plan, path, arguments.mps if plan.mps else "off")


def plan_start(
    ground: Ground,
    inventory: Inventory,
    gpus: tuple[Gpu, ...],
    mps: MpsChoice,
    models: tuple[ModelRequest, ...],
    arguments: StartArguments,
    home: Home,
    environ: Mapping[str, str],
) -> Planned:
    """The plan that the start follows: the file's if there is one, else the planner's.

    Raises:
        PlanError: What is asked for does not fit, or the file was made for another machine or other models.
        PreflightError: The settings do not fit the models.
        MpsError: The file wants MPS, which cannot be used here.
    """
    site = site_here(inventory, gpus, mps, arguments.cpu_affinity, home, environ)
    if ground.plan is None:
        plan = decide(site, models, mps, ground.settings, arguments, auto=arguments.plan == AUTO)
        chosen = mps_of(plan, mps)
        notes = plan.warnings if chosen.on == mps.on else (chosen.why, *plan.warnings)
    else:
        plan = fit(ground.plan, ground.path, site, models)
        if plan.mps and not mps.on:
            raise MpsError(f"The plan {ground.path} needs MPS. {mps.why}", "Make a plan without it: --mps off.")
        chosen = mps if plan.mps else replace(mps, on=False, why=why_off(plan))
        notes = (*plan.warnings, *short_memory(plan, site))
    return Planned(plan, chosen, with_planned_workers(models, plan), tuple(notes))


def decide(
    site: Site,
    models: Sequence[ModelRequest],
    mps: MpsChoice,
    settings: Settings,
    arguments: StartArguments,
    *,
    auto: bool,
) -> Plan:
    """Let the planner place the workers of the models.

    Args:
        site: The machine.
        models: What TorchServe will load.
        mps: Whether MPS can be used.
        settings: What ts-mps.toml says.
        arguments: ``--mps`` and ``--reserve``.
        auto: Whether the planner decides worker counts that nobody set, and whether MPS is used at all.

    Raises:
        PlanError: What is asked for does not fit, or contradicts itself.
        PreflightError: The settings name a model that is not loaded, or a file that is no profile.
    """
    facts = model_facts(models, settings, site.gpus, auto=auto)
    # An instance without models on a GPU may get some later, through the management API: nothing to decide from.
    open_question = auto and mps.on and mps_wish(arguments, settings) == "auto" and any(one.on_gpu for one in facts)
    plan = make_plan(
        Facts(
            gpus=site.gpus,
            models=facts,
            host=site.host,
            policy=policy_of(settings, arguments),
            mps="auto" if open_question else "on" if mps.on else "off",
            mps_why="" if open_question else mps.why,
            fingerprints=site.fingerprints(),
        )
    )
    return plan if open_question else _as_chosen(plan, site, mps)


def mps_wish(arguments: StartArguments, settings: Settings) -> str:
    """``--mps on|off``, else what the settings say: "auto", "on" or "off"."""
    return settings.mps if arguments.mps == "auto" else arguments.mps


def policy_of(settings: Settings, arguments: StartArguments) -> Policy:
    """The settings' rules, with ``--reserve`` where it was given."""
    return settings.policy if arguments.reserve is None else replace(settings.policy, reserve=arguments.reserve)


def mps_of(plan: Plan, mps: MpsChoice) -> MpsChoice:
    """The choice after the plan, which may have found that MPS does not pay."""
    return mps if plan.mps or not mps.on else MpsChoice(False, why_off(plan))


def why_off(plan: Plan) -> str:
    """Why a plan is without MPS, as a sentence: the choice's own, or the planner's reason made one."""
    return plan.mps_why if plan.mps_why.startswith(MPS_SENTENCE) else f"{MPS_SENTENCE}off: {plan.mps_why}."


def with_planned_workers(models: Sequence[ModelRequest], plan: Plan) -> tuple[ModelRequest, ...]:
    """The models with the plan's worker counts, which TorchServe is then told to start."""
    counts = Counter((slot.model, slot.version) for slot in plan.slots)
    return tuple(replace(model, workers=counts[model.name, model.version or None]) for model in models)


def _as_chosen(plan: Plan, site: Site, mps: MpsChoice) -> Plan:
    """A plan without work for MPS still says why there is none, or how workers that are added later become clients."""
    if plan.mps == mps.on:
        return replace(plan, mps_why=mps.why)
    facts = {gpu.uuid: gpu for gpu in site.gpus}
    gpus = tuple(_with_mps(gpu, facts[gpu.uuid].cap, facts[gpu.uuid].pipe) for gpu in plan.gpus)
    return replace(plan, mps=mps.on, mps_why=mps.why, gpus=gpus)


def _with_mps(gpu: PlannedGpu, cap: int, pipe: str | None) -> PlannedGpu:
    return replace(gpu, cap=cap, pipe=pipe)

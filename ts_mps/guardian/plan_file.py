"""A plan from a file: read, checked in itself, then against this machine and the models that will be loaded."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ts_mps.errors import PlanError, UsageError
from ts_mps.guardian.site import Site
from ts_mps.plan.model import Plan
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.models import ModelRequest

_AGAIN = "Make a plan for here: ts-mps plan -o FILE, with the options of the start."


def read_plan(path: Path) -> Plan:
    """Read a plan that ``ts-mps plan -o`` wrote.

    Raises:
        UsageError: There is no such file.
        PlanError: It cannot be read, is not a plan of this version, or contradicts itself.
    """
    try:
        plan = _parse(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(
            f"The plan {path} does not exist.", "Correct --plan; ts-mps plan -o FILE writes one."
        ) from error
    except OSError as error:
        raise PlanError(f"The plan {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise PlanError(f"The plan {path} cannot be used: {error}.", _AGAIN) from error
    problem = _contradiction(plan)
    if problem:
        raise PlanError(f"The plan {path} contradicts itself: {problem}.", _AGAIN)
    return plan


def check_arguments(arguments: StartArguments, path: Path, plan: Plan) -> None:
    """Flags that would say something else than the plan.

    Raises:
        UsageError: There is one.
    """
    given = {
        "--workers": bool(arguments.workers),
        "--reserve": arguments.reserve is not None,
        "--settings": arguments.settings is not None,
        f"--mps {arguments.mps}": arguments.mps == ("off" if plan.mps else "on"),
    }
    for flag, contradicts in given.items():
        if contradicts:
            raise UsageError(
                f"{flag} and --plan {path} contradict each other: the plan says it already.",
                "Leave one of them out (a TS_MPS_* variable counts as its flag), or make the plan with that option.",
            )


def fit(plan: Plan, path: Path, site: Site, models: Sequence[ModelRequest]) -> Plan:
    """The plan for this machine's daemons.

    Args:
        plan: As it was read.
        path: Where from, for sentences.
        site: This machine.
        models: What TorchServe will load.

    Raises:
        PlanError: It was made for another machine or other models, or others have taken the clients that it needs.
    """
    _check_machine(plan, path, site)
    _check_models(plan, path, models)
    here = {gpu.uuid: gpu for gpu in site.gpus}
    for gpu in plan.gpus:
        attached = here[gpu.uuid].attached
        if gpu.cap is not None and gpu.clients + attached > gpu.cap:
            raise PlanError(
                f"The plan {path} needs {gpu.clients} of the {gpu.cap} MPS clients of {gpu.label}, and {attached} are "
                "taken by others now.",
                _AGAIN,
            )
    gpus = tuple(
        replace(gpu, attached=here[gpu.uuid].attached, pipe=here[gpu.uuid].pipe if plan.mps else None)
        for gpu in plan.gpus
    )
    # OMP_NUM_THREADS in the environment of a start stands, whatever was set where the plan was made.
    slots = plan.slots if site.host.set_threads else tuple(replace(slot, threads=0) for slot in plan.slots)
    return replace(plan, gpus=gpus, slots=slots)


def short_memory(plan: Plan, site: Site) -> list[str]:
    """Where less memory is free now than the plan's workers are expected to take; one sentence each."""
    free = {gpu.uuid: gpu.memory_total - gpu.memory_taken for gpu in site.gpus}
    return [
        f"The plan expects its workers to take {gpu.memory_planned / 2**30:.1f} GiB of {gpu.label}, and "
        f"{free[gpu.uuid] / 2**30:.1f} GiB are free now."
        for gpu in plan.gpus
        if gpu.memory_planned > free[gpu.uuid]
    ]


def _parse(text: str) -> Plan:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a plan")
    plan = Plan.from_json(value)
    # Plan.from_json trusts the types, since ts-mps writes its own plans; people edit this one.
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(Plan).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return plan


def _contradiction(plan: Plan) -> str:
    """What cannot be true of a plan on any machine; empty if nothing was found."""
    uuids = [gpu.uuid for gpu in plan.gpus]
    if len(set(uuids)) != len(uuids):
        return "a GPU is in it twice"
    if [slot.number for slot in plan.slots] != list(range(len(plan.slots))):
        return "its slots are not numbered from 0 on"
    for slot in plan.slots:
        share = slot.thread_percentage
        if slot.gpu is not None and slot.gpu not in uuids:
            return f"slot {slot.number} is on {slot.gpu}, which is not among its GPUs"
        if share is not None and not 0 < share <= 100:
            return f"slot {slot.number} has a thread percentage of {share:g}"
        if slot.priority not in (None, 0, 1):
            return f"slot {slot.number} has priority {slot.priority}, and MPS knows 0 and 1"
        if slot.memory_limit is not None and not re.fullmatch(r"[1-9][0-9]*[GM]", slot.memory_limit):
            return f"slot {slot.number} has the memory limit {slot.memory_limit!r}, which is not of the form 512M or 4G"
        if slot.threads < 0:
            return f"slot {slot.number} has {slot.threads} threads"
    clients = Counter(slot.gpu for slot in plan.slots)
    for gpu in plan.gpus:
        if (gpu.cap is None) == plan.mps:
            return f"{gpu.label} has {'no' if plan.mps else 'a'} client cap and MPS is {'on' if plan.mps else 'off'}"
        if plan.mps and clients[gpu.uuid] != gpu.clients:
            return f"it says {gpu.clients} client(s) of {gpu.label} and has {clients[gpu.uuid]} slot(s) there"
        if gpu.cap is not None and gpu.clients > gpu.cap:
            return f"{clients[gpu.uuid]} slots are on {gpu.label}, which takes {gpu.cap} MPS clients"
    counts = Counter((slot.model, slot.version) for slot in plan.slots)
    said = {(model.name, model.version): model.workers for model in plan.models}
    for model in {**counts, **said}:
        if counts[model] != said.get(model, 0):
            return f"it says {said.get(model, 0)} worker(s) of model {model[0]} and has {counts[model]} slot(s) for it"
    return ""


def _check_machine(plan: Plan, path: Path, site: Site) -> None:
    if any(gpu.uuid.startswith("MIG-") for gpu in plan.gpus):
        raise PlanError(
            f"The plan {path} is for MIG instances, on which ts-mps does not serve: it was not tried on hardware.",
            "Plan for whole GPUs.",
        )
    here = site.fingerprints()
    names = [name for name in {**plan.machine, **here} if plan.mps or not name.startswith("client cap")]
    differ = [name for name in names if plan.machine.get(name) != here.get(name)]
    if differ:
        told = "; ".join(
            f"{name}: {plan.machine.get(name, 'not there')}, this machine has {here.get(name, 'no such thing')}"
            for name in differ
        )
        raise PlanError(f"The plan {path} was made for another machine. It was made for {told}.", _AGAIN)
    unknown = sorted({core for slot in plan.slots for core in slot.cores} - set(site.host.cores))
    lost = [gpu.label for gpu in plan.gpus if gpu.uuid not in {one.uuid for one in site.gpus}]
    if unknown or lost:
        what = f"host core {unknown[0]}" if unknown else lost[0]
        raise PlanError(f"The plan {path} uses {what}, which this machine has not or you may not use.", _AGAIN)


def _check_models(plan: Plan, path: Path, models: Sequence[ModelRequest]) -> None:
    planned = {(model.name, model.version) for model in plan.models}
    loaded = {(model.name, model.version or None) for model in models}
    differences = [
        *(f"it has {_told(model)}, which is not loaded" for model in sorted(planned - loaded, key=str)),
        *(f"{_told(model)} is loaded and not in it" for model in sorted(loaded - planned, key=str)),
    ]
    if differences:
        raise PlanError(f"The plan {path} was made for other models: {'; '.join(differences)}.", _AGAIN)
    places = {(slot.model, slot.version): slot for slot in plan.slots if slot.gpu is not None}
    for model in models:
        if model.device_type == "cpu" and (model.name, model.version or None) in places:
            raise PlanError(
                f"The plan {path} has model {model.name} on a GPU, and its archive says deviceType: cpu.", _AGAIN
            )


def _told(model: tuple[str, str | None]) -> str:
    return " ".join(filter(None, ("model", model[0], model[1] and f"version {model[1]}")))

"""What is wished for each model, out of the flags, ``ts-mps.toml``, the archives and the profiles beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from ts_mps.errors import PlanError, PreflightError
from ts_mps.plan.estimate import estimate_memory
from ts_mps.plan.facts import GpuFacts, ModelFacts, WorkerMemory, WorkerWish
from ts_mps.plan.profile import Profile
from ts_mps.settings import ModelSettings, Settings
from ts_mps.torchserve.digest import content_digest
from ts_mps.torchserve.models import WORKERS_FLAG, ModelRequest

#: What a profile is called that lies beside its archive, after the archive's name without its ending.
PROFILE_SUFFIX = ".profile.json"


def model_facts(
    models: Sequence[ModelRequest], settings: Settings, gpus: Sequence[GpuFacts], *, auto: bool
) -> tuple[ModelFacts, ...]:
    """Everything that the planner must know of the models.

    A profile that lies beside its archive counts where the planner has something to decide; where the numbers are
    fixed, only one that the settings name, so that a start as before needs to read no archive as a whole.

    Args:
        models: What TorchServe will load.
        settings: What ts-mps.toml says.
        gpus: GPUs in use.
        auto: Whether the planner decides how many workers a model gets for which nobody set a number.

    Raises:
        PreflightError: The settings name a model that is not loaded, or a file that is no profile.
        PlanError: The settings contradict the archive, or a profile is of another model.
    """
    _check_names(models, settings)
    return tuple(_facts(model, settings.models.get(model.name, ModelSettings()), gpus, auto) for model in models)


def _facts(model: ModelRequest, wishes: ModelSettings, gpus: Sequence[GpuFacts], auto: bool) -> ModelFacts:
    # Where there is no GPU, TorchServe says "cpu" of every model; the planner knows that by itself.
    on_gpu = (not gpus or model.device_type != "cpu") and not model.parallel
    placed = on_gpu and bool(gpus)
    batch = _batch_size(model, wishes)
    workers = _workers(model, wishes, auto)
    profile = _profile(model, wishes, auto or not workers.fixed, on_cpu=not placed)
    return ModelFacts(
        name=model.name,
        version=model.version or None,
        workers=workers,
        on_gpu=on_gpu,
        device_ids=model.device_ids,
        gpus=_gpus(model, wishes, gpus) if placed else (),
        weight=wishes.weight,
        batch_size=batch,
        profile=profile,
        memory=_memory(model, wishes, batch, profile) if placed else None,
        thread_percentage=wishes.thread_percentage,
        memory_limit=wishes.memory_limit,
        priority=wishes.priority,
    )


def _workers(model: ModelRequest, wishes: ModelSettings, auto: bool) -> WorkerWish:
    """--workers, else ts-mps.toml, else the archive and config.properties, else auto or TorchServe's default."""
    wish = WorkerWish(model.asked.value, model.asked.value, model.asked.source)
    if model.asked.source != WORKERS_FLAG:
        if wishes.workers is not None:
            wish = wishes.workers
        elif auto and not model.asked.chosen and not model.parallel:
            wish = WorkerWish(1, None, "auto")
    if model.parallel and not wish.fixed:
        raise PlanError(
            f"Model {model.name} spreads each worker over several GPUs (parallelType), and the planner places workers "
            f"on one GPU each, so it cannot say how many ({wish.source}).",
            "Write a number.",
        )
    return wish


def _batch_size(model: ModelRequest, wishes: ModelSettings) -> int:
    """TorchServe's; of an archive that is yet to be downloaded, what the settings say of it."""
    if wishes.batch_size is None or wishes.batch_size == model.batch.value:
        return model.batch.value
    if model.archive is None:
        return wishes.batch_size
    raise PlanError(
        f"The settings plan for batches of {wishes.batch_size} of model {model.name}, and TorchServe will make batches "
        f"of {model.batch.value} ({model.batch.source}).",
        f"Write batchSize: {wishes.batch_size} into its model-config.yaml, or take batch_size out of the settings.",
    )


def _gpus(model: ModelRequest, wishes: ModelSettings, gpus: Sequence[GpuFacts]) -> tuple[str, ...]:
    """UUIDs of the GPUs that the settings allow; an index of a GPU in MIG mode stands for all its instances."""
    allowed: list[str] = []
    for wish in wishes.gpus:
        found = [gpu.uuid for gpu in gpus if wish in (gpu.index, gpu.uuid)]
        if not found:
            raise PlanError(
                f"The settings allow model {model.name} on GPU {wish}, which is not in use.",
                f"In use: {', '.join(gpu.label for gpu in gpus)}.",
            )
        allowed += [uuid for uuid in found if uuid not in allowed]
    named = [gpus[position] for position in model.device_ids if position < len(gpus)]
    elsewhere = [gpu.label for gpu in named if allowed and gpu.uuid not in allowed]
    if elsewhere:
        raise PlanError(
            f"The deviceIds of model {model.name} put it on {elsewhere[0]}, and the settings allow it only on "
            f"{', '.join(allowed)}.",
            "Take deviceIds out of its model-config.yaml, or gpus out of the settings.",
        )
    return tuple(allowed)


def _memory(model: ModelRequest, wishes: ModelSettings, batch: int, profile: Profile | None) -> WorkerMemory | None:
    """Measured, else as the settings say, else estimated; what the settings leave out is estimated."""
    run = profile.run(batch) if profile else None
    if run is not None:
        return WorkerMemory(run.context, run.weights, run.peak, "profile")
    said = wishes.memory
    if model.archive is None and said.weights is None:
        return None  # nothing is known of an archive that is yet to be downloaded
    weights = model.weights if said.weights is None else said.weights
    guess = estimate_memory(weights)
    return WorkerMemory(
        context=guess.context if said.context is None else said.context,
        weights=weights,
        peak=guess.peak if said.peak is None else said.peak,
        # The context is a matter of the driver; the two others are what only the model's owner can know.
        source="estimate" if said.weights is None or said.peak is None else "config",
    )


def _profile(model: ModelRequest, wishes: ModelSettings, look_beside: bool, on_cpu: bool) -> Profile | None:
    path = wishes.profile
    if path is None and look_beside and model.archive is not None:
        path = profile_beside(model.archive)
        path = path if path.is_file() else None
    if path is None:
        return None
    profile = _read_profile(path)
    if on_cpu and profile.gpu != "CPU":
        return None  # one of a GPU says nothing of a CPU: no mistake, and no reason to read the archive
    of_another = f"The profile {path} is of another model: "
    again = "Measure this one with ts-mps profile, or take the profile away."
    if model.archive is None:
        if profile.model != model.name:
            raise PlanError(f"{of_another}{profile.model}, not {model.name}.", again)
    elif content_digest(model.archive) != profile.sha256:
        raise PlanError(
            f"{of_another}{profile.model} as it was in {profile.archive}; the content of {model.archive} is not the "
            "same.",
            again,
        )
    if profile.gpu == "CPU" and not on_cpu:
        raise PlanError(
            f"The profile {path} of model {model.name} was measured on a CPU, and it shall run on a GPU.", again
        )
    return profile


def profile_beside(archive: Path) -> Path:
    """Where the profile of an archive lies that nobody named."""
    name = archive.name
    for ending in (".mar", ".tar.gz", ".model"):
        name = name.removesuffix(ending)
    return archive.parent / f"{name}{PROFILE_SUFFIX}"


def _read_profile(path: Path) -> Profile:
    remedy = "Correct its path, or write it with ts-mps profile."
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError("it is not a profile")
        return Profile.from_json(value)
    except OSError as error:
        raise PreflightError(f"The profile {path} cannot be read: {error.strerror or error}.", remedy) from error
    except (ValueError, RecursionError) as error:
        raise PreflightError(f"The profile {path} cannot be used: {error}.", remedy) from error


def _check_names(models: Sequence[ModelRequest], settings: Settings) -> None:
    loaded = sorted({model.name for model in models})
    for name in settings.models:
        if name not in loaded:
            near = get_close_matches(name, loaded, 1)
            raise PreflightError(
                f"{settings.path} speaks of the model {name}, which is not loaded.",
                f"Did you mean {near[0]}?" if near else f"Loaded: {', '.join(loaded) or 'none'}.",
            )

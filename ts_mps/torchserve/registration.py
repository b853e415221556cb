"""With how many workers and which batch size TorchServe will register a model, and who said so.

The rules are those of TorchServe 0.12.0: ModelConfig, ModelManager.createModel and ConfigManager.getJsonIntValue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ts_mps.errors import PreflightError
from ts_mps.torchserve.archives import Archive


@dataclass(frozen=True)
class Machine:
    """What TorchServe's defaults depend on.

    Args:
        gpus: The GPUs that TorchServe will count, after CUDA_VISIBLE_DEVICES and number_of_gpu.
        cpus: The processors that Java will count.
    """

    gpus: int
    cpus: int


@dataclass(frozen=True)
class Number:
    """A number and where it comes from.

    Args:
        value: The number.
        source: Who said so, as a part of a sentence: "minWorkers of its model-config.yaml".
        chosen: False if nobody did and it is TorchServe's default.
    """

    value: int
    source: str
    chosen: bool = True


#: RegisterModelRequest.DEFAULT_BATCH_SIZE.
DEFAULT_BATCH_SIZE = Number(1, "TorchServe's default", chosen=False)
#: For a request whose maker does not say; TorchServe itself counts GPUs, see :func:`default_workers`.
DEFAULT_WORKERS = Number(1, "TorchServe's default", chosen=False)


def configured_workers(archive: Archive, settings: Mapping[str, str], machine: Machine) -> Number:
    """minWorkers of model-config.yaml, else of the setting ``models``, else the default.

    Raises:
        PreflightError: A setting is no number.
    """
    least = archive.integer("minWorkers")
    if least is not None:
        least = max(1, least)  # as ModelConfig.setMinWorkers
        if (archive.integer("maxWorkers") or 0) >= least:  # else TorchServe ignores both
            return Number(least, "minWorkers of its model-config.yaml")
    found = _setting(archive, settings, "minWorkers")
    return found or default_workers(settings, machine)


def batch_size(archive: Archive, settings: Mapping[str, str]) -> Number:
    """batchSize of model-config.yaml, else of the setting ``models``, else 1.

    Raises:
        PreflightError: A setting is no number.
    """
    size = archive.integer("batchSize")
    if size is not None:
        return Number(max(1, size), "batchSize of its model-config.yaml")  # as ModelConfig.setBatchSize
    return _setting(archive, settings, "batchSize") or DEFAULT_BATCH_SIZE


def default_workers(settings: Mapping[str, str], machine: Machine) -> Number:
    """How many workers a model gets for which nobody wrote a number.

    Raises:
        PreflightError: default_workers_per_model is no number.
    """
    if settings.get("debug", "").lower() == "true":
        return Number(1, "TorchServe's debug mode")
    value = settings.get("default_workers_per_model", "0")
    try:
        number = int(value)
    except ValueError as error:
        raise PreflightError(f"default_workers_per_model={value} is not a number.", "Write a number.") from error
    if number:
        return Number(number, "default_workers_per_model")
    if machine.gpus:
        return Number(machine.gpus, "TorchServe's default, one for each GPU", chosen=False)
    return Number(machine.cpus, "TorchServe's default, one for each processor", chosen=False)


def model_settings(archive: Archive, settings: Mapping[str, str]) -> Mapping[str, Any]:
    """What ``models={"NAME": {"VERSION": {...}}}`` says of this name and version.

    Raises:
        PreflightError: The setting is not of that form.
    """
    try:
        found = json.loads(settings.get("models", "{}")).get(archive.name, {}).get(archive.version) or {}
        return {**found}
    except (ValueError, AttributeError, TypeError) as error:
        raise PreflightError(
            "The setting 'models' of config.properties is not JSON of the form "
            '{"NAME": {"VERSION": {"minWorkers": 1}}}.',
            "Correct it; a value over several lines needs a backslash at the end of each line but the last.",
        ) from error


def _setting(archive: Archive, settings: Mapping[str, str], key: str) -> Number | None:
    """A number of the setting ``models``; None where TorchServe passes over it: missing, or not above 0."""
    value = model_settings(archive, settings).get(key)
    try:
        number = int(value) if value is not None else 0
    except (TypeError, ValueError) as error:
        raise PreflightError(
            f"{key} of {archive.name} in the setting 'models' is {value!r}, which is no number.", "Write a number."
        ) from error
    return Number(number, f"{key} in the setting 'models'") if number > 0 else None

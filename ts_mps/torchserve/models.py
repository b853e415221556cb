"""Which models TorchServe will load at its start, and with how many workers.

The rules are those of TorchServe 0.12.0 (ModelServer.initModelStore, ModelManager, ModelConfig), so that the plan is
made for what will really be started.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ts_mps.errors import PreflightError, UsageError
from ts_mps.torchserve.archives import Archive, read_archive
from ts_mps.torchserve.model_store import default_name, in_store, locate, named_archives
from ts_mps.torchserve.registration import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_WORKERS,
    Machine,
    Number,
    batch_size,
    configured_workers,
    default_workers,
    model_settings,
)

#: The source of a number that ``--workers`` sets: nothing is stronger.
WORKERS_FLAG = "--workers"


@dataclass(frozen=True)
class ModelRequest:
    """One version of one model that TorchServe will register at its start.

    Args:
        name: Name under which it is served.
        version: Version of the archive; empty for an archive that TorchServe has yet to download.
        archive: File or folder of the archive; None for one that TorchServe has yet to download.
        url: As it is written in ``--models`` or ``load_models``.
        workers: How many workers are wanted.
        configured_workers: How many TorchServe will start by itself; other than ``workers`` under ``--workers``.
        device_type: "gpu" or "cpu".
        device_ids: ``deviceIds`` of model-config.yaml, indices among the visible GPUs; empty for all in turn.
        parallel: Whether TorchServe spreads one worker over several GPUs (parallelType), setting its own
            CUDA_VISIBLE_DEVICES.
        use_venv: Whether its workers run in a virtual environment of their own.
        runtime: "python", "python3" or "LSP".
        asked: Where ``workers`` comes from, and whether a person chose it.
        batch: Requests in a batch at most, and where that comes from.
        weights: Bytes of the archive's weight files, unpacked; 0 where there are none or it is yet to be downloaded.
    """

    name: str
    version: str
    archive: Path | None
    url: str
    workers: int
    configured_workers: int
    device_type: str
    device_ids: tuple[int, ...] = ()
    parallel: bool = False
    use_venv: bool = False
    runtime: str = "python"
    asked: Number = DEFAULT_WORKERS
    batch: Number = DEFAULT_BATCH_SIZE
    weights: int = 0


def requested_models(
    settings: Mapping[str, str],
    *,
    models: Sequence[str],
    model_store: Path,
    workers: Sequence[str],
    machine: Machine,
) -> tuple[ModelRequest, ...]:
    """Foretell what TorchServe will load.

    Args:
        settings: Resolved values of config.properties.
        models: Values of ``--models``; where there are any, they beat ``load_models``.
        model_store: The model store.
        workers: Values of ``--workers``: "4" for every model, "NAME=4" for one.
        machine: GPUs and processors that defaults depend on.

    Raises:
        PreflightError: A model that TorchServe could not load: its archive is missing or unusable, it is there twice,
            or a setting cannot be read. TorchServe would log a warning and go on without it, or die.
        UsageError: A value of ``--workers`` that is no number or names a model that is not loaded.
    """
    snapshot = settings.get("model_snapshot")
    if snapshot is not None:
        requests = _from_snapshot(snapshot, settings, model_store, machine)
    else:
        requests = [
            _request(name, url, settings, model_store, machine)
            for name, url in named_archives(",".join(models) or settings.get("load_models", ""), model_store)
        ]
    _refuse_duplicates(requests)
    return _override(requests, workers)


def _request(name: str, url: str, settings: Mapping[str, str], store: Path, machine: Machine) -> ModelRequest:
    path = locate(url, settings, store)
    if path is None:
        count = default_workers(settings, machine)
        # Its own configuration may say otherwise once TorchServe has downloaded it.
        return ModelRequest(
            name or default_name(url), "", None, url, count.value, count.value, _default_device(machine), asked=count
        )
    archive = read_archive(path, settings.get("default_service_handler", ""))
    archive = replace(archive, name=name or archive.name or default_name(url))
    workers = configured_workers(archive, settings, machine)
    return _from_archive(archive, url, workers, batch_size(archive, settings), settings, machine)


def _from_archive(
    archive: Archive, url: str, workers: Number, batch: Number, settings: Mapping[str, str], machine: Machine
) -> ModelRequest:
    config = archive.config or {}
    asked = str(config.get("deviceType", "")).lower()
    device_type = "cpu" if asked == "cpu" else _default_device(machine)
    device_ids = _device_ids(config.get("deviceIds"), machine)
    level = _parallel_level(archive)
    if level and device_type == "gpu":
        capacity = (len(device_ids) or machine.gpus) // level
        if capacity == 0:
            raise PreflightError(
                f"The model {archive.name} spreads each worker over {level} GPUs (parallelLevel) and TorchServe sees "
                f"{len(device_ids) or machine.gpus}.",
                "Lower parallelLevel (torchrun.nproc-per-node) in its model-config.yaml, or give it more GPUs.",
            )
        workers = replace(workers, value=min(workers.value, capacity))
    runtime = str(model_settings(archive, settings).get("runtimeType", archive.runtime))
    return ModelRequest(
        archive.name,
        archive.version,
        archive.path,
        url,
        workers.value,
        workers.value,
        device_type,
        device_ids,
        parallel=level > 0,
        use_venv=config.get("useVenv") is True,
        runtime=runtime,
        asked=workers,
        batch=batch,
        weights=archive.weights,
    )


def _from_snapshot(snapshot: str, settings: Mapping[str, str], store: Path, machine: Machine) -> list[ModelRequest]:
    """The models of ``model_snapshot``, which beats ``--models`` and ``load_models``."""
    requests = []
    try:
        value = json.loads(snapshot)
        if int(value["modelCount"]) <= 0:
            return []
        for name, versions in value["models"].items():
            for state in versions.values():
                url = str(state["marName"])
                archive = read_archive(in_store(url, store), settings.get("default_service_handler", ""))
                archive = replace(archive, name=name)
                workers = Number(int(state["minWorkers"]), "TorchServe's snapshot")
                batch = Number(int(state.get("batchSize", 1)), "TorchServe's snapshot")
                requests.append(_from_archive(archive, url, workers, batch, settings, machine))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PreflightError(
            "model_snapshot is not a snapshot of TorchServe.", "Remove it from the configuration, or start with --ncs."
        ) from error
    return requests


def _default_device(machine: Machine) -> str:
    return "gpu" if machine.gpus else "cpu"


def _device_ids(value: Any, machine: Machine) -> tuple[int, ...]:
    """The list, or nothing where TorchServe ignores it: no integers, or a GPU that is not there."""
    if not isinstance(value, list) or not all(type(entry) is int and 0 <= entry < machine.gpus for entry in value):
        return ()
    return tuple(value)


def _parallel_level(archive: Archive) -> int:
    config = archive.config or {}
    torchrun = config.get("torchrun")
    level = torchrun.get("nproc-per-node", 1) if isinstance(torchrun, dict) else archive.integer("parallelLevel")
    kinds = ("pp", "tp", "pptp", "custom")
    return level if isinstance(level, int) and str(config.get("parallelType", "")).lower() in kinds else 0


def _refuse_duplicates(requests: Sequence[ModelRequest]) -> None:
    seen: dict[tuple[str, str], ModelRequest] = {}
    for request in requests:
        other = seen.setdefault((request.name, request.version), request)
        if other is not request:
            raise PreflightError(
                f"Both {other.url} and {request.url} are version {request.version or 'unknown'} of the model "
                f"{request.name}; TorchServe dies of that.",
                "Give one of them another name (NAME=ARCHIVE) or version, or load one only.",
            )


def _override(requests: Sequence[ModelRequest], workers: Sequence[str]) -> tuple[ModelRequest, ...]:
    """Apply ``--workers``; a number for one model beats the number for all."""
    wanted: dict[str, int] = {}
    for value in workers:
        name, _, count = value.rpartition("=")
        if not count.isdecimal() or int(count) < 1:
            raise UsageError(f"--workers {value} is not understood.", "Write a number from 1, or MODEL=NUMBER.")
        if name and name not in {request.name for request in requests}:
            raise UsageError(f"--workers {value}: no model {name} is loaded.", "Name a model that is.")
        wanted[name] = int(count)

    def overridden(request: ModelRequest) -> ModelRequest:
        number = wanted.get(request.name, wanted.get(""))
        if number is None:
            return request
        return replace(request, workers=number, asked=Number(number, WORKERS_FLAG))

    return tuple(overridden(request) for request in requests)

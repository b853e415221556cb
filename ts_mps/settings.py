"""``ts-mps.toml``: the rules of the plan, and what is wished for each model. Every key stands in config/ts-mps.toml."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ts_mps.errors import PreflightError, UsageError
from ts_mps.plan.facts import PERCENTAGE_POLICIES, Policy, WorkerWish
from ts_mps.tables import Table, is_integer, told

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Looked for in the working folder where nobody names another file.
FILE_NAME = "ts-mps.toml"
#: Names another file, as ``--settings`` does.
VARIABLE = "TS_MPS_SETTINGS"
MPS_CHOICES = ("auto", "on", "off")
#: CUDA_MPS_CLIENT_PRIORITY by name (NVIDIA MPS guide, "Environment variables").
PRIORITIES = {"normal": 0, "below-normal": 1}
#: Bounds that only a slip of the pen reaches.
_MOST_WORKERS = 10_000
_MOST_BATCH = 65_536
_MOST_RESERVE = 1_000
_MOST_WEIGHT = 1e6


@dataclass(frozen=True)
class MemorySettings:
    """GPU memory of one worker in bytes, as far as the file says; None leaves a figure to profile or estimate.

    Attributes:
        context: Its CUDA context.
        weights: What loading the model adds.
        peak: What batches add on top.
    """

    context: int | None = None
    weights: int | None = None
    peak: int | None = None


@dataclass(frozen=True)
class ModelSettings:
    """What ``[models.NAME]`` says; None and empty where it says nothing.

    Attributes:
        workers: How many over all GPUs; ``WorkerWish(1, None, ...)`` for "auto".
        weight: How much its throughput counts beside the other models', above 0.
        batch_size: The batch size to plan for.
        profile: What ``ts-mps profile`` wrote.
        memory: GPU memory of one worker.
        gpus: Indices and UUIDs of the only GPUs it may use, as written; empty for all.
        thread_percentage: Of its workers, in (0, 100]; beats the policy.
        memory_limit: The most device memory that a worker may take, in bytes.
        priority: CUDA_MPS_CLIENT_PRIORITY: 0 normal, 1 below normal.
    """

    workers: WorkerWish | None = None
    weight: float = 1.0
    batch_size: int | None = None
    profile: Path | None = None
    memory: MemorySettings = MemorySettings()
    gpus: tuple[int | str, ...] = ()
    thread_percentage: float | None = None
    memory_limit: int | None = None
    priority: int | None = None


@dataclass(frozen=True)
class Settings:
    """A whole file.

    Attributes:
        policy: The rules of the plan.
        mps: "auto", "on" or "off".
        models: By registered model name.
        path: The file; None where there is none and everything is default.
        given: Keys that ``[plan]`` has, so that a default is not taken for the user's word.
    """

    policy: Policy = field(default_factory=Policy)
    mps: str = "auto"
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    path: Path | None = None
    given: frozenset[str] = frozenset()


PLAN_KEYS = ("mps", *(one.name for one in fields(Policy)))
MODEL_KEYS = tuple(one.name for one in fields(ModelSettings))


def find_settings(explicit: str | None, environ: Mapping[str, str], folder: Path) -> Path | None:
    """Which file counts: ``--settings``, else TS_MPS_SETTINGS, else ``ts-mps.toml`` in the working folder, else none.

    Args:
        explicit: The value of ``--settings``; None where it was not given.
        environ: Where TS_MPS_SETTINGS is looked up; empty counts as not set.
        folder: The working folder.
    """
    named = explicit or environ.get(VARIABLE)
    if named:
        return folder / named
    return folder / FILE_NAME if (folder / FILE_NAME).exists() else None


def read_settings(path: Path | None) -> Settings:
    """Read and check a file; without one everything is default.

    Raises:
        UsageError: There is no such file.
        PreflightError: It cannot be read, is not TOML, or says something that cannot be; the sentence names file, table
            and key.
    """
    if path is None:
        return Settings()
    document = Table(_parse(path), str(path), ("plan", "models"))
    plan = Table(document.value.get("plan", {}), f"{path}: [plan]", PLAN_KEYS)
    models = document.value.get("models", {})
    if not isinstance(models, dict):
        document.refuse("models", "one table for each model: [models.NAME]")
    return Settings(
        policy=_policy(plan),
        mps=plan.optional("mps", lambda key: plan.one_of(key, MPS_CHOICES), "auto"),
        models={
            name: _model(Table(value, f"{path}: [models.{name}]", MODEL_KEYS), path) for name, value in models.items()
        },
        path=path,
        given=frozenset(plan.value),
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"The settings file {path} does not exist.",
            f"Correct --settings or {VARIABLE}, or copy config/{FILE_NAME}.",
        ) from error
    except OSError as error:
        raise PreflightError(f"The settings file {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or a nest of brackets
        raise PreflightError(f"The settings file {path} is not TOML: {error}.") from error
    return content


def _policy(plan: Table) -> Policy:
    default = Policy()
    policy = Policy(
        reserve=plan.optional("reserve", lambda key: plan.integer(key, 0, _MOST_RESERVE), default.reserve),
        memory_margin=plan.optional(
            "memory_margin", lambda key: plan.number(key, 0, 1, below=True), default.memory_margin
        ),
        cores_per_worker=plan.optional(
            "cores_per_worker", lambda key: plan.number(key, 0, 1024), default.cores_per_worker
        ),
        percentages=plan.optional(
            "percentages", lambda key: plan.one_of(key, PERCENTAGE_POLICIES), default.percentages
        ),
        percentage=plan.optional("percentage", lambda key: _percentage(plan, key), default.percentage),
        least_gain=plan.optional("least_gain", lambda key: plan.number(key, 0, 1), default.least_gain),
    )
    if policy.percentages == "fixed" and policy.percentage is None:
        raise PreflightError(
            f'{plan.place} has percentages = "fixed" and no percentage.', "Add the percentage, such as percentage = 50."
        )
    if policy.percentages != "fixed" and policy.percentage is not None:
        raise PreflightError(
            f'{plan.place} has a percentage, which only counts with percentages = "fixed" (it is '
            f'"{policy.percentages}").',
            'Set percentages = "fixed", or leave out percentage.',
        )
    return policy


def _model(table: Table, path: Path) -> ModelSettings:
    return ModelSettings(
        workers=table.optional("workers", lambda key: _workers(table, key), None),
        weight=table.optional("weight", lambda key: table.number(key, 0, _MOST_WEIGHT, above=True), 1.0),
        batch_size=table.optional("batch_size", lambda key: table.integer(key, 1, _MOST_BATCH), None),
        profile=table.optional("profile", lambda key: path.parent / table.text(key), None),
        memory=table.optional("memory", lambda key: _memory(table, key), MemorySettings()),
        gpus=table.optional("gpus", lambda key: _gpus(table, key), ()),
        thread_percentage=table.optional("thread_percentage", lambda key: _percentage(table, key), None),
        memory_limit=table.optional("memory_limit", lambda key: table.size(key, least=1), None),
        priority=table.optional("priority", lambda key: PRIORITIES[table.one_of(key, tuple(PRIORITIES))], None),
    )


def _workers(table: Table, key: str) -> WorkerWish:
    """4, "auto", "2-8" or {min = 2, max = 8}."""
    source = f"{key} in {table.place}"
    value = table.value[key]
    if value == "auto":
        return WorkerWish(1, None, source)
    if is_integer(value):
        count = table.integer(key, 0, _MOST_WORKERS)
        return WorkerWish(count, count, source)
    if isinstance(value, dict):
        limits = Table(value, f"{table.place} {key}", ("min", "max"))
        least = limits.optional("min", lambda name: limits.integer(name, 1, _MOST_WORKERS), 1)
        most = limits.optional("max", lambda name: limits.integer(name, 1, _MOST_WORKERS), None)
    else:
        found = re.fullmatch(r"([0-9]{1,9})\s*-\s*([0-9]{1,9})", value) if isinstance(value, str) else None
        if found is None or not 1 <= int(found[1]) <= _MOST_WORKERS or int(found[2]) > _MOST_WORKERS:
            table.refuse(
                key, f'a number up to {_MOST_WORKERS}, "auto", a range from 1 on such as "2-8", or {{min = 2, max = 8}}'
            )
        least, most = int(found[1]), int(found[2])
    if most is not None and least > most:
        raise PreflightError(
            f"{table.place} {key} wants at least {least} and at most {most} workers.", "Turn them round."
        )
    return WorkerWish(least, most, source)


def _memory(table: Table, key: str) -> MemorySettings:
    memory = Table(table.value[key], f"{table.place} {key}", tuple(one.name for one in fields(MemorySettings)))
    return MemorySettings(**{name: memory.size(name) for name in memory.value})


def _gpus(table: Table, key: str) -> tuple[int | str, ...]:
    gpus = table.items(key)
    for gpu in gpus:
        index = is_integer(gpu) and 0 <= gpu < 4096
        uuid = isinstance(gpu, str) and re.fullmatch(r"(GPU|MIG)-[0-9a-f-]{36}", gpu)
        if not (index or uuid):
            table.refuse(key, 'a list of indices and UUIDs, such as [0, "GPU-..."]')
    twice = [gpu for place, gpu in enumerate(gpus) if gpu in gpus[:place]]
    if not gpus or twice:
        table.refuse(
            key, "a list of at least one GPU, each named once" + (f" ({told(twice[0])} is twice)" if twice else "")
        )
    return tuple(gpus)


def _percentage(table: Table, key: str) -> float:
    return table.number(key, 0, 100, above=True)

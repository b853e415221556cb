"""Named workloads: a model, how its archive is built, and what is sent to it. They lie in benchmarks/workloads/."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ts_mps.bench.load.bodies import write_bodies
from ts_mps.errors import PreflightError, UsageError
from ts_mps.files import locked
from ts_mps.profile.messages import Request


def _checkout() -> Path:
    """The repository that this file is in; of an installed package, the working folder, which may be one."""
    around = Path(__file__).resolve().parents[3]
    return around if (around / "benchmarks" / "workloads").is_dir() else Path.cwd()


_REPOSITORY = _checkout()
#: Ends the name of the variant that a CPU serves in no time.
TINY = "-tiny"


@dataclass(frozen=True)
class Workload:
    """What is served and sent.

    Attributes:
        name: Its file's, with ``-tiny`` behind it for the variant for CPUs.
        title: For people.
        script: Its script in handlers/build, which is the model's name as well.
        preset: The script's preset.
        settings: Keys of model-config.yaml and their values, TorchServe's own or with a section: ``batching.dtype``.
        handler: Its handler's file in the repository, in place of the script's; empty for that.
        bodies: What is sent: a kind of benchmarks/bodies.py.
        sizes: What that kind takes in place of its own numbers: ``{"tokens": 512, "generated": 1}``.
        batch_sizes: Those that make sense, ascending.
        max_batch_delay: Milliseconds that a worker waits for a batch to fill.
        check: Of :class:`ts_mps.bench.load.Spec`.
    """

    name: str
    title: str
    script: str
    preset: str
    bodies: str
    batch_sizes: tuple[int, ...]
    max_batch_delay: int
    check: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    handler: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A workload ready to be served and sent.

    Attributes:
        archive: Its archive, as a folder (``--archive-format no-archive``), named like the model.
        bodies: A folder for :func:`ts_mps.bench.load.read_bodies`.
        mean_bytes: Mean size of a body.
    """

    archive: Path
    bodies: Path
    mean_bytes: int


def known(repository: Path = _REPOSITORY) -> tuple[str, ...]:
    """The names that :func:`workload` knows; none where ts-mps is installed without its repository."""
    names = sorted(file.stem for file in (repository / "benchmarks" / "workloads").glob("*.yaml"))
    return tuple(name + variant for name in names for variant in ("", TINY))


def workload(name: str, repository: Path = _REPOSITORY) -> Workload:
    """The workload of this name.

    Raises:
        UsageError: There is none of this name, or none at all, as they are part of the repository and not of the
            package.
    """
    names = known(repository)
    if not names:
        raise UsageError(
            f"The workload {name!r} is not here: named workloads are part of ts-mps's repository, and this ts-mps is "
            "installed without it.",
            "Name your own model and requests with --archive and --payload, or call ts-mps in a checkout.",
        )
    if name not in names:
        raise UsageError(f"There is no workload {name!r}.", f"There are {', '.join(names)}.")
    stem = name.removesuffix(TINY)
    document: dict[str, Any] = yaml.safe_load((repository / "benchmarks" / "workloads" / f"{stem}.yaml").read_text())
    tiny = document.pop("tiny")
    if name != stem:
        settings = {**document.get("settings", {}), **tiny.pop("settings", {})}
        document.update(tiny, title=f"{document['title']} (tiny)", settings=settings)
    document["batch_sizes"] = tuple(document["batch_sizes"])
    return Workload(name=name, **document)


def prepare(what: Workload, folder: Path, repository: Path = _REPOSITORY, model: Path | None = None) -> Prepared:
    """Build the archive, with one worker and the smallest batch size, and make the bodies.

    Args:
        what: The workload.
        folder: For both; made if it is missing. What an earlier call built there is used again.
        repository: Where handlers/ and benchmarks/ are.
        model: Folder of the model alone, which several workloads may share; ``folder / "model"`` unless given.

    Raises:
        PreflightError: The archive cannot be built; the script's output is in ``details``.
    """
    model, bodies = model or folder / "model", folder / "bodies"
    for parent in (folder, model.parent):
        parent.mkdir(parents=True, exist_ok=True)
    # Another study may be building the same model there. What has its name is whole: it was renamed when it was done.
    with locked(model.with_name(f".{model.name}.lock")):
        archive = folder / "store" / what.script
        if not archive.is_dir():
            _build(what, archive, model, repository)
        sent, content_type = _maker(repository).make(what.bodies, model, **what.sizes)
        if not bodies.is_dir():
            part = _emptied(folder / "bodies.part")
            write_bodies(part, [Request(body, content_type) for body in sent]).rename(bodies)
    return Prepared(archive, bodies, round(sum(map(len, sent)) / len(sent)))


def _build(what: Workload, archive: Path, model: Path, repository: Path) -> None:
    part, store = _emptied(model.with_name(f"{model.name}.part")), _emptied(archive.parent.with_name("store.part"))
    source = ["--model", str(model)] if model.is_dir() else ["--preset", what.preset, "--keep-model", str(part)]
    command = [sys.executable, str(repository / "handlers" / "build" / f"{what.script}.py"), *source]
    command += ["--store", str(store), "--format", "no-archive"]
    command += ["--handler", str(repository / what.handler)] if what.handler else []
    for key, value in (_torchserve(what) | dict(what.settings)).items():
        command += ["--set", f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise PreflightError(f"The archive of the workload {what.name} cannot be built.", details=output)
    if part.is_dir():
        part.rename(model)
    archive.parent.mkdir(exist_ok=True)
    (store / what.script).rename(archive)
    store.rmdir()


def _emptied(part: Path) -> Path:
    """A folder that is being filled, without what a call that was broken off has left of it."""
    shutil.rmtree(part, ignore_errors=True)
    return part


def _torchserve(what: Workload) -> dict[str, Any]:
    sizes = {"batchSize": what.batch_sizes[0], "maxBatchDelay": what.max_batch_delay}
    return {"minWorkers": 1, "maxWorkers": 1, **sizes}


def _maker(repository: Path) -> Any:
    """benchmarks/bodies.py, which is no part of the package."""
    file = repository / "benchmarks" / "bodies.py"
    spec = importlib.util.spec_from_file_location("ts_mps_benchmarks_bodies", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ts_mps.errors import PreflightError, UsageError
from ts_mps.torchserve.model_store import default_name
from ts_mps.torchserve.models import ModelRequest, requested_models
from ts_mps.torchserve.registration import Machine

NO_GPU = Machine(gpus=0, cpus=5)


def pack(store: Path, file: str, config: str | None = None, *, name: str = "", version: str = "1.0") -> Path:
    model = {"modelName": name, "modelVersion": version, "handler": "handler.py"}
    if config is not None:
        model["configFile"] = "config.yaml"
    with zipfile.ZipFile(store / file, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
        archive.writestr("handler.py", "")
        if config is not None:
            archive.writestr("config.yaml", config)
    return store / file


def ask(
    store: Path, *models: str, workers: tuple[str, ...] = (), machine: Machine = NO_GPU, **settings: str
) -> tuple[ModelRequest, ...]:
    return requested_models(settings, models=models, model_store=store, workers=workers, machine=machine)


def counts(requests: tuple[ModelRequest, ...]) -> dict[str, int]:
    return {request.name: request.workers for request in requests}


@pytest.mark.parametrize(
    ("config", "settings", "machine", "expected"),
    [
        (None, {}, NO_GPU, 5),
        (None, {}, Machine(3, 5), 3),
        (None, {"default_workers_per_model": "2"}, Machine(3, 5), 2),
        (None, {"debug": "TRUE", "default_workers_per_model": "2"}, NO_GPU, 1),
        ("minWorkers: 2\nmaxWorkers: 2", {}, NO_GPU, 2),
        ("minWorkers: 2\nmaxWorkers: 4", {"models": {"m": {"1.0": {"minWorkers": 3}}}}, NO_GPU, 2),
        ("minWorkers: 2", {}, NO_GPU, 5),  # without maxWorkers both are ignored
        ("minWorkers: 2", {"models": {"m": {"1.0": {"minWorkers": 3}}}}, NO_GPU, 3),
        ("minWorkers: 3\nmaxWorkers: 2", {}, NO_GPU, 5),
        ("minWorkers: 0\nmaxWorkers: 2", {}, NO_GPU, 1),
        ("minWorkers: '2'\nmaxWorkers: 2", {}, NO_GPU, 5),
        ("batchSize: 2", {}, NO_GPU, 5),
        (None, {"models": {"m": {"1.0": {"minWorkers": 3, "maxWorkers": 1}}}}, NO_GPU, 3),
        (None, {"models": {"m": {"1.0": {"minWorkers": "3"}}}}, NO_GPU, 3),
        (None, {"models": {"m": {"1.0": {"minWorkers": 0}}}}, NO_GPU, 5),
        (None, {"models": {"m": {"2.0": {"minWorkers": 3}}}}, NO_GPU, 5),
        (None, {"models": {"other": {"1.0": {"minWorkers": 3}}}}, NO_GPU, 5),
    ],
)
def test_worker_counts(
    tmp_path: Path, config: str | None, settings: dict[str, Any], machine: Machine, expected: int
) -> None:
    pack(tmp_path, "m.mar", config)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    assert counts(ask(tmp_path, "m.mar", machine=machine, **texts)) == {"m": expected}


def test_nothing_is_loaded_unless_asked_for(tmp_path: Path) -> None:
    pack(tmp_path, "m.mar")
    assert ask(tmp_path) == ()
    assert ask(tmp_path, load_models="") == ()


def test_the_flag_beats_load_models_and_a_snapshot_beats_both(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        pack(tmp_path, f"{name}.mar", "minWorkers: 4\nmaxWorkers: 4", name=f"inside_{name}")
    assert set(counts(ask(tmp_path, load_models="a.mar,b.mar"))) == {"inside_a", "inside_b"}
    assert set(counts(ask(tmp_path, "b.mar", load_models="a.mar"))) == {"inside_b"}
    state = {"defaultVersion": True, "marName": "c.mar", "minWorkers": 2, "maxWorkers": 2}
    snapshot = json.dumps({"name": "x", "modelCount": 1, "models": {"saved": {"1.0": state}}})
    assert counts(ask(tmp_path, "b.mar", model_snapshot=snapshot)) == {"saved": 2}
    empty = json.dumps({"name": "x", "modelCount": 0, "models": {}})
    assert ask(tmp_path, "b.mar", model_snapshot=empty) == ()
    with pytest.raises(PreflightError, match=r"archive c\.mar is not in the model store"):
        (tmp_path / "c.mar").unlink()
        ask(tmp_path, "b.mar", model_snapshot=snapshot)
    with pytest.raises(PreflightError, match="not a snapshot"):
        ask(tmp_path, "b.mar", model_snapshot='{"models": 1}')


def test_all_takes_archives_and_folders_of_the_store(tmp_path: Path) -> None:
    pack(tmp_path, "m.mar")
    pack(tmp_path, ".hidden.mar")
    (tmp_path / "README.md").write_text("")
    assert set(counts(ask(tmp_path, "all"))) == {"m"}
    (tmp_path / "folder").mkdir()
    with pytest.raises(PreflightError, match="folder is no model archive"):
        ask(tmp_path, load_models="ALL")


@pytest.mark.parametrize(
    ("asked", "inside", "name"),
    [
        ("x=m-1.mar", "inside", "x"),
        ("m-1.mar", "inside", "inside"),
        ("m-1.mar", "", "m_1"),
        ("=m-1.mar", "inside", "inside"),
    ],
)
def test_names(tmp_path: Path, asked: str, inside: str, name: str) -> None:
    pack(tmp_path, "m-1.mar", name=inside)
    (request,) = ask(tmp_path, asked)
    assert (request.name, request.url, request.archive) == (name, "m-1.mar", tmp_path / "m-1.mar")


def test_default_names() -> None:
    names = {"a/b-c.mar": "b_c", "_x.mar": "_x", "resnet.18.mar": "resnet_18", "some dir": "some_dir"}
    assert {url: default_name(url) for url in (*names, "m.tar.gz")} == {**names, "m.tar.gz": "m_tar_gz"}


def test_where_archives_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, outside = tmp_path / "store", tmp_path / "outside"
    store.mkdir()
    outside.mkdir()
    pack(store, "m.mar")
    pack(outside, "n.mar")
    assert ask(store, "/somewhere/else/m.mar")[0].archive == store / "m.mar"
    with pytest.raises(PreflightError, match=r"archive .*n\.mar is not in the model store"):
        ask(store, str(outside / "n.mar"))
    with pytest.raises(PreflightError, match=r"takes no '\.\.'"):
        ask(store, "../outside/n.mar")
    folder = outside / "folder"
    with zipfile.ZipFile(outside / "n.mar") as archive:
        archive.extractall(folder)
    assert ask(store, f"n={folder}")[0].archive == folder
    monkeypatch.chdir(outside)
    assert ask(store, "n=folder")[0].archive == Path("folder")


def test_archives_by_url(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    outside = pack(tmp_path, "m.mar", "minWorkers: 2\nmaxWorkers: 2")
    assert counts(ask(store, f"m=file://{outside}")) == {"m": 2}
    (request,) = ask(store, "n=https://example.org/x/n.mar?sig=1")
    assert (request.name, request.version, request.archive, request.workers) == ("n", "", None, 5)
    with pytest.raises(PreflightError, match="allowed_urls does not allow"):
        ask(store, "https://example.org/n.mar", allowed_urls="https://other.org/.*,file://.*")
    pack(store, "n.mar")
    with pytest.raises(PreflightError, match=r"because .*n\.mar exists already"):
        ask(store, "https://example.org/n.mar")


def test_two_of_one_name_and_version(tmp_path: Path) -> None:
    pack(tmp_path, "a.mar", name="m")
    pack(tmp_path, "b.mar", name="m", version="2.0")
    assert [request.version for request in ask(tmp_path, "all")] == ["1.0", "2.0"]
    pack(tmp_path, "c.mar", name="m")
    with pytest.raises(PreflightError, match=r"Both a\.mar and c\.mar are version 1\.0 of the model m"):
        ask(tmp_path, "all")


def test_devices(tmp_path: Path) -> None:
    pack(tmp_path, "ids.mar", "deviceIds: [1, 1, 0]")
    pack(tmp_path, "wrong.mar", "deviceIds: [0, 2]")
    pack(tmp_path, "cpu.mar", "deviceType: cpu")
    pack(tmp_path, "gpu.mar", "deviceType: gpu")
    devices = {r.name: (r.device_type, r.device_ids) for r in ask(tmp_path, "all", machine=Machine(2, 5))}
    assert devices == {"ids": ("gpu", (1, 1, 0)), "wrong": ("gpu", ()), "cpu": ("cpu", ()), "gpu": ("gpu", ())}
    assert {r.device_type for r in ask(tmp_path, "all")} == {"cpu"}


def test_workers_that_span_gpus(tmp_path: Path) -> None:
    pack(tmp_path, "m.mar", "parallelType: tp\ntorchrun: {nproc-per-node: 2}\nminWorkers: 9\nmaxWorkers: 9")
    pack(tmp_path, "untyped.mar", "parallelLevel: 2\nminWorkers: 9\nmaxWorkers: 9")
    requests = ask(tmp_path, "all", machine=Machine(4, 5))
    assert [(r.name, r.workers, r.parallel) for r in requests] == [("m", 2, True), ("untyped", 9, False)]
    with pytest.raises(PreflightError, match="spreads each worker over 2 GPUs"):
        ask(tmp_path, "m.mar", machine=Machine(1, 5))
    assert counts(ask(tmp_path, "m.mar")) == {"m": 9}


def test_runtime_and_virtual_environment(tmp_path: Path) -> None:
    pack(tmp_path, "m.mar", "useVenv: true")
    (request,) = ask(tmp_path, "m.mar", models='{"m": {"1.0": {"runtimeType": "python3"}}}')
    assert (request.runtime, request.use_venv) == ("python3", True)


def test_workers_flag(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pack(tmp_path, f"{name}.mar", "minWorkers: 2\nmaxWorkers: 2")
    assert counts(ask(tmp_path, "all", workers=("3",))) == {"a": 3, "b": 3}
    assert counts(ask(tmp_path, "all", workers=("a=4",))) == {"a": 4, "b": 2}
    requests = ask(tmp_path, "all", workers=("a=4", "3"))
    assert counts(requests) == {"a": 4, "b": 3}
    assert {request.configured_workers for request in requests} == {2}
    with pytest.raises(UsageError, match="no model c is loaded"):
        ask(tmp_path, "all", workers=("c=4",))
    for value in ("x", "a=x", "0", "a=0", "-1", ""):
        with pytest.raises(UsageError, match="is not understood"):
            ask(tmp_path, "all", workers=(value,))


@pytest.mark.parametrize("text", ["{", "[]", '{"m": 1}', '{"m": {"1.0": 1}}'])
def test_models_setting_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    pack(tmp_path, "m.mar")
    with pytest.raises(PreflightError, match="'models'"):
        ask(tmp_path, "m.mar", models=text)


def test_numbers_that_cannot_be_read(tmp_path: Path) -> None:
    pack(tmp_path, "m.mar")
    with pytest.raises(PreflightError, match="minWorkers of m"):
        ask(tmp_path, "m.mar", models='{"m": {"1.0": {"minWorkers": "many"}}}')
    with pytest.raises(PreflightError, match="default_workers_per_model=many"):
        ask(tmp_path, "m.mar", default_workers_per_model="many")


@pytest.mark.parametrize(
    ("config", "settings", "workers", "source", "chosen"),
    [
        (None, {}, (), "TorchServe's default, one for each processor", False),
        (None, {"default_workers_per_model": "2"}, (), "default_workers_per_model", True),
        (None, {"debug": "true"}, (), "TorchServe's debug mode", True),
        ("minWorkers: 2\nmaxWorkers: 2", {}, (), "minWorkers of its model-config.yaml", True),
        (None, {"models": '{"m": {"1.0": {"minWorkers": 3}}}'}, (), "minWorkers in the setting 'models'", True),
        ("minWorkers: 2\nmaxWorkers: 2", {}, ("4",), "--workers", True),
    ],
)
def test_who_said_how_many_workers(
    tmp_path: Path, config: str | None, settings: dict[str, str], workers: tuple[str, ...], source: str, chosen: bool
) -> None:
    pack(tmp_path, "m.mar", config)
    (request,) = ask(tmp_path, "m.mar", workers=workers, **settings)
    assert (request.asked.value, request.asked.source, request.asked.chosen) == (request.workers, source, chosen)


@pytest.mark.parametrize(
    ("config", "settings", "size", "source"),
    [
        (None, {}, 1, "TorchServe's default"),
        ("batchSize: 8", {}, 8, "batchSize of its model-config.yaml"),
        ("batchSize: 0", {}, 1, "batchSize of its model-config.yaml"),
        ("batchSize: 8", {"models": '{"m": {"1.0": {"batchSize": 4}}}'}, 8, "batchSize of its model-config.yaml"),
        ("batchSize: '8'", {"models": '{"m": {"1.0": {"batchSize": 4}}}'}, 4, "batchSize in the setting 'models'"),
        (None, {"models": '{"m": {"1.0": {"batchSize": -4}}}'}, 1, "TorchServe's default"),
        (None, {"models": '{"m": {"2.0": {"batchSize": 4}}}'}, 1, "TorchServe's default"),
    ],
)
def test_batch_size(tmp_path: Path, config: str | None, settings: dict[str, str], size: int, source: str) -> None:
    pack(tmp_path, "m.mar", config)
    (request,) = ask(tmp_path, "m.mar", **settings)
    assert (request.batch.value, request.batch.source) == (size, source)


def test_a_snapshot_says_workers_and_batch(tmp_path: Path) -> None:
    pack(tmp_path, "m.mar", "batchSize: 2")
    state = {"defaultVersion": True, "marName": "m.mar", "minWorkers": 3, "maxWorkers": 3, "batchSize": 16}
    snapshot = json.dumps({"name": "x", "modelCount": 1, "models": {"m": {"1.0": state}}})
    (request,) = ask(tmp_path, model_snapshot=snapshot)
    assert (request.workers, request.batch.value) == (3, 16)
    assert request.asked.source == request.batch.source == "TorchServe's snapshot"


def test_weight_files_are_counted_unpacked(tmp_path: Path) -> None:
    path = pack(tmp_path, "m.mar")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.safetensors", b"0" * 100_000)
        archive.writestr("sub/extra.PT", b"0" * 7)
        archive.writestr("vocab.txt", b"0" * 1000)
    assert path.stat().st_size < 10_000
    assert ask(tmp_path, "m.mar")[0].weights == 100_007
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "inner" / "m")
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "inner" / "m", "outer")
    (tmp_path / "inner").rename(tmp_path / "folder")
    assert [request.weights for request in ask(tmp_path, "a=t.tar.gz", "b=folder")] == [100_007, 100_007]

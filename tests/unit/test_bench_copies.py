"""The archive of one arm."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from benching import arm

from ts_mps.bench.copies import arm_archive
from ts_mps.torchserve.archives import read_archive


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "MAR-INF").mkdir(parents=True)
    (folder / "inner").mkdir()
    (folder / "model.safetensors").write_bytes(bytes(1000))
    (folder / "inner" / "tokenizer.json").write_text("{}")
    (folder / "handler.py").write_text("class Handler: ...")
    (folder / "model-config.yaml").write_text(
        "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 2\nmaxBatchDelay: 33\ndeviceIds: [3]\nhandler: {threshold: 0.5}\n"
    )
    manifest = {
        "runtime": "python",
        "model": {"modelName": "m", "handler": "handler.py", "modelVersion": "2.0", "configFile": "model-config.yaml"},
    }
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    return folder


def test_weights_are_shared_and_the_configuration_is_the_arms(source, tmp_path):
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    arm_archive(source, tmp_path / "copy", "m", arm(4, 16, mps=True))
    made = read_archive(tmp_path / "copy")
    assert (made.name, made.version) == ("m", "2.0")
    config = dict(made.config or {})
    assert {key: config[key] for key in ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay")} == {
        "minWorkers": 4,
        "maxWorkers": 4,
        "batchSize": 16,
        "maxBatchDelay": 33,
    }
    assert config["handler"] == {"threshold": 0.5}, "what the handler reads stays"
    assert config["deviceIds"] == [0], "the server sees one GPU only"
    assert (tmp_path / "copy" / "model.safetensors").stat().st_ino == (source / "model.safetensors").stat().st_ino
    assert (tmp_path / "copy" / "inner" / "tokenizer.json").read_text() == "{}"
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_the_arms_delay_beats_the_archives(source, tmp_path):
    arm_archive(source, tmp_path / "copy", "m", arm(1, device="cpu", options={"max_batch_delay": "0"}))
    config = yaml.safe_load((tmp_path / "copy" / "model-config.yaml").read_text())
    assert (config["maxBatchDelay"], config["deviceType"]) == (0, "cpu")


def test_where_hard_links_cannot_be_made_the_bytes_are_still_not_copied(source, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    arm_archive(source, tmp_path / "copy", "m", arm(1))
    assert (tmp_path / "copy" / "model.safetensors").is_symlink()
    assert read_archive(tmp_path / "copy").weights == 1000


def test_an_archive_without_a_configuration_gets_one(source, tmp_path):
    (source / "model-config.yaml").unlink()
    manifest = json.loads((source / "MAR-INF" / "MANIFEST.json").read_text())
    del manifest["model"]["configFile"]
    (source / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    arm_archive(source, tmp_path / "copy", "m", arm(2))
    assert read_archive(tmp_path / "copy").integer("minWorkers") == 2


def test_a_no_op_arm_needs_no_model(tmp_path):
    arm_archive(tmp_path / "nothing", tmp_path / "copy", "m", arm(2, 4, noop=True, device="cpu"))
    made = read_archive(tmp_path / "copy")
    assert (made.name, made.handler, made.integer("batchSize")) == ("m", "noop.py", 4)
    namespace: dict[str, type] = {}
    exec((tmp_path / "copy" / "noop.py").read_text(), namespace)
    assert json.loads(namespace["Noop"]().handle([{}, {}], None)[1]) == {"label": 0, "score": 0.0}

"""The build scripts: what they archive, and what they refuse to overwrite or to build."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from handling import build_module


def build(name: str, *arguments: str) -> Path:
    script = build_module(name)
    preset = script.tiny
    return script.main(name, {"tiny": preset}, list(arguments))


def test_a_preset_and_its_model_folder_give_the_same_archive(tmp_path: Path) -> None:
    kept = tmp_path / "model"
    first = build("ranker", "--keep-model", str(kept), "--store", str(tmp_path / "a"))
    second = build("ranker", "--model", str(kept), "--store", str(tmp_path / "b"))
    names = [sorted(zipfile.ZipFile(path).namelist()) for path in (first, second)]
    assert names[0] == names[1]
    manifest = json.loads(zipfile.ZipFile(first).read("MAR-INF/MANIFEST.json"))["model"]
    assert (manifest["serializedFile"], manifest["modelFile"]) == ("model.safetensors", "model.py")


def test_sub_folders_keep_their_place_and_hidden_ones_stay_out(tmp_path: Path) -> None:
    model = tmp_path / "with, comma"
    build("text_classifier", "--keep-model", str(model), "--store", str(tmp_path / "a"))
    config = (model / "config.json").read_text()
    for name in (".git", "onnx"):
        (model / name).mkdir()
        (model / name / "config.json").write_text("{}")
    archive = zipfile.ZipFile(build("text_classifier", "--model", str(model), "--store", str(tmp_path / "b")))
    assert archive.read("config.json").decode() == config
    assert "onnx/config.json" in archive.namelist()
    assert not [name for name in archive.namelist() if ".git" in name or name == "HEAD"]


def test_a_config_beside_weights_does_not_hide_them(tmp_path: Path) -> None:
    model = tmp_path / "model"
    build("ranker", "--keep-model", str(model), "--store", str(tmp_path / "a"))
    (model / "config.json").write_text("{}")
    archive = zipfile.ZipFile(build("ranker", "--model", str(model), "--store", str(tmp_path / "b")))
    assert json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]["serializedFile"] == "model.safetensors"


def test_nothing_but_an_archive_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "mine.txt").write_text("precious")
    where = ("--store", str(tmp_path), "--format", "no-archive")
    with pytest.raises(SystemExit, match="is no archive"):
        build("ranker", "--name", "docs", *where)
    assert (tmp_path / "docs" / "mine.txt").read_text() == "precious"
    made = build("ranker", *where)
    assert build("ranker", *where) == made
    with pytest.raises(SystemExit, match="holds the model"):
        build("ranker", "--model", str(made), *where)
    assert (made / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "nowhere.yaml"], "there is no such file"),
        (["--handler", "nowhere.py"], "there is no such file"),
        (["--name", "a/b"], "without slashes"),
        (["--set", "batchSize.x=1"], "is no section"),
        (["--set", "batching.rows=[1,"], "not YAML"),
        (["--set", "batchSize"], "KEY=VALUE"),
        (["--model", "{empty}"], "no model in it"),
        (["--model", "{empty}", "--keep-model", "x"], "does not go with --model"),
        (["--keep-model", "{full}"], "is not empty"),
    ],
)
def test_what_cannot_be_built_is_said(
    tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    given = [one.format(empty=tmp_path / "empty", full=tmp_path / "full") for one in arguments]
    with pytest.raises(SystemExit) as stopped:
        build("ranker", "--store", str(tmp_path / "store"), *given)
    assert says in f"{stopped.value} {capsys.readouterr().err}"

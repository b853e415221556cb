from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ts_mps.errors import PreflightError
from ts_mps.torchserve.archives import Archive, read_archive

FORMATS = ["model.mar", "model.tar.gz", "model.model", "folder", "nested"]


def manifest(**model: Any) -> str:
    entries = {"modelName": "digits", "modelVersion": "2.1", "handler": "handler.py", **model}
    return json.dumps({"runtime": "python", "model": {key: value for key, value in entries.items() if value}})


def content(config: str | None = None, **model: Any) -> dict[str, str]:
    files = {"MAR-INF/MANIFEST.json": manifest(configFile="config.yaml" if config is not None else None, **model)}
    files["handler.py"] = "def handle(data, context): ..."
    if config is not None:
        files["config.yaml"] = config
    return files


def pack(folder: Path, name: str, files: dict[str, str]) -> Path:
    path = folder / name
    if name.endswith(".mar"):
        with zipfile.ZipFile(path, "w") as archive:
            for entry, text in files.items():
                archive.writestr(entry, text)
    elif "." in name:
        with tarfile.open(path, "w:gz") as archive:
            for entry, text in files.items():
                info = tarfile.TarInfo(f"outer/{entry}")
                info.size = len(text.encode())
                archive.addfile(info, io.BytesIO(text.encode()))
    else:
        root = path / "inner" if name == "nested" else path
        for entry, text in files.items():
            (root / entry).parent.mkdir(parents=True, exist_ok=True)
            (root / entry).write_text(text)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_reads_every_format(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path, name, content("minWorkers: 2\nmps: {percentage: 20}\n"))
    config = {"minWorkers": 2, "mps": {"percentage": 20}}
    assert read_archive(path) == Archive(path, "digits", "2.1", "handler.py", "python", config)


@pytest.mark.parametrize("name", FORMATS)
def test_faults_are_found_in_every_format(tmp_path: Path, name: str) -> None:
    files = content()
    del files["handler.py"]
    path = pack(tmp_path, name, {**files, "other.py": ""})
    with pytest.raises(PreflightError, match=r"names the handler 'handler\.py', which is neither"):
        read_archive(path)


@pytest.mark.parametrize("name", FORMATS[:3])
@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.9])
def test_a_truncated_archive(tmp_path: Path, name: str, keep: float) -> None:
    path = pack(tmp_path, name, {**content(), "weights.pt": random.Random(0).randbytes(9000).hex()})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(PreflightError, match="is damaged or truncated") as caught:
        read_archive(path)
    assert str(path) in str(caught.value)


def test_a_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"none\.mar cannot be read: No such file"):
        read_archive(tmp_path / "none.mar")


def test_an_archive_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="is no model archive"):
        read_archive(pack(tmp_path, "model.mar", {"handler.py": ""}))


@pytest.mark.parametrize("text", ["{", "[]", '{"model": null}', '{"model": []}', "model: x"])
def test_a_manifest_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    with pytest.raises(PreflightError, match="is not the JSON of a model archive"):
        read_archive(pack(tmp_path, "model.mar", {"MAR-INF/MANIFEST.json": text}))


def test_an_unknown_runtime(tmp_path: Path) -> None:
    files = {**content(), "MAR-INF/MANIFEST.json": manifest().replace('"python"', '"python2"')}
    with pytest.raises(PreflightError, match="asks for runtime 'python2'"):
        read_archive(pack(tmp_path, "model.mar", files))


def test_an_entry_outside_the_archive(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="an entry outside itself"):
        read_archive(pack(tmp_path, "model.mar", {**content(), "../evil.py": ""}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("minWorkers: [1", "is not YAML at line 1"),
        ("a: 1\n\tb: 2", "is not YAML at line 2"),
        ("", "is not a mapping"),
        ("- minWorkers", "is not a mapping"),
        ("yes: 1", "is not a mapping"),
    ],
)
def test_a_config_that_cannot_be_used(tmp_path: Path, config: str, message: str) -> None:
    with pytest.raises(PreflightError, match=f"config.yaml in .* {message}"):
        read_archive(pack(tmp_path, "model.mar", content(config)))


def test_a_config_that_is_not_in_the_archive(tmp_path: Path) -> None:
    files = content("minWorkers: 1")
    del files["config.yaml"]
    with pytest.raises(PreflightError, match=r"names config\.yaml as its configuration and does not hold it"):
        read_archive(pack(tmp_path, "model.mar", files))


def test_defaults_of_a_bare_manifest(tmp_path: Path) -> None:
    path = pack(tmp_path, "model.mar", {"MAR-INF/MANIFEST.json": "{}", "handler.py": ""})
    assert read_archive(path, "handler.py") == Archive(path, "", "1.0", "", "python", None)
    with pytest.raises(PreflightError, match="names no handler"):
        read_archive(path)


def test_a_version_written_as_a_number_keeps_its_digits(tmp_path: Path) -> None:
    files = {**content(), "MAR-INF/MANIFEST.json": manifest().replace('"2.1"', "1.10")}
    assert read_archive(pack(tmp_path, "model.mar", files)).version == "1.10"


@pytest.mark.parametrize(
    "handler",
    ["handler.py", "handler", "handler.py:other", "some/folder/handler.py", "image_classifier", "package", "json"],
)
def test_handlers_that_torchserve_finds(tmp_path: Path, handler: str) -> None:
    files = {**content(handler=handler), "package/__init__.py": ""}
    assert read_archive(pack(tmp_path, "model.mar", files)).handler == handler


def test_a_compiled_handler_is_not_looked_for(tmp_path: Path) -> None:
    text = manifest(handler="libhandler:Handler").replace('"python"', '"LSP"')
    assert read_archive(pack(tmp_path, "model.mar", {"MAR-INF/MANIFEST.json": text})).runtime == "LSP"


def test_only_integers_count_as_integers(tmp_path: Path) -> None:
    path = pack(tmp_path, "model.mar", content("a: 3\nb: '3'\nc: true\nd: 3.0\n"))
    assert [read_archive(path).integer(key) for key in "abcde"] == [3, None, None, None, None]

"""Archives as they are laid out for a worker, and their digest."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from ts_mps.errors import PreflightError
from ts_mps.torchserve.digest import content_digest
from ts_mps.torchserve.unpack import unpack

FILES = {"MAR-INF/MANIFEST.json": b"{}", "handler.py": b"x = 1\n", "sub/weights.bin": bytes(range(256))}


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def a_folder(path: Path, names: dict[str, bytes] = FILES) -> Path:
    for name, data in names.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def a_mar(path: Path, names: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return path


def a_tar(path: Path, outer: str = "model/", names: dict[str, bytes] = FILES) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in names.items():
            member = tarfile.TarInfo(outer + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_each_kind_gives_the_same_files(tmp_path):
    kinds = [a_mar(tmp_path / "m.mar"), a_tar(tmp_path / "m.tar.gz"), a_folder(tmp_path / "folder")]
    for number, archive in enumerate(kinds):
        into = tmp_path / f"into{number}"
        into.mkdir()
        assert files_in(unpack(archive, into)) == FILES


def test_a_folder_in_a_folder_is_used_where_it_is(tmp_path):
    inner = a_folder(tmp_path / "outer" / "inner")
    assert unpack(tmp_path / "outer", tmp_path / "unused") == inner


def test_what_is_damaged_is_refused(tmp_path):
    for name, make in (("m.mar", a_mar), ("m.tar.gz", a_tar)):
        whole = make(tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(PreflightError, match="damaged"):
            unpack(tmp_path / name, tmp_path)


def test_nothing_is_written_outside(tmp_path):
    into = tmp_path / "in" / "to"
    into.mkdir(parents=True)
    with pytest.raises(PreflightError, match="outside itself"):
        unpack(a_tar(tmp_path / "m.tar.gz", names={"../../escaped": b"x"}), into)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "into").mkdir(mode=0o500)
    with pytest.raises(PreflightError, match="TMPDIR"):
        unpack(a_mar(tmp_path / "m.mar"), tmp_path / "into")


CONFIG = b"batchSize: 8\nminWorkers: 2\nbatching: {dtype: fp16}\n"
DATED = b'{"createdOn": "%d/11/2026", "runtime": "python"}'
NAMES = {**FILES, "MAR-INF/MANIFEST.json": DATED % 1, "model-config.yaml": CONFIG}


def test_the_digest_is_of_the_content_however_it_is_packed(tmp_path):
    folder = a_folder(tmp_path / "folder", NAMES)
    digest = content_digest(folder)
    assert content_digest(a_mar(tmp_path / "m.mar", NAMES)) == digest
    assert content_digest(a_tar(tmp_path / "m.tar.gz", names=NAMES)) == digest
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "handler.pyc").write_bytes(b"compiled")
    assert content_digest(folder) == digest


@pytest.mark.parametrize(
    ("name", "data", "same"),
    [
        ("MAR-INF/MANIFEST.json", DATED % 2, True),
        ("MAR-INF/MANIFEST.json", b'{"createdOn": "1/11/2026", "runtime": "LSP"}', False),
        ("model-config.yaml", b"# more\nminWorkers: 3\nbatchSize: 4\nbatching:\n  dtype: fp16\n", True),
        ("model-config.yaml", CONFIG.replace(b"fp16", b"fp32"), False),
        ("handler.py", b"x = 2\n", False),
        ("more.txt", b"", False),
    ],
)
def test_the_digest_changes_with_what_a_worker_does(tmp_path, name, data, same):
    before = content_digest(a_folder(tmp_path / "before", NAMES))
    for archive in (
        a_folder(tmp_path / "after", {**NAMES, name: data}),
        a_mar(tmp_path / "m.mar", {**NAMES, name: data}),
    ):
        assert (content_digest(archive) == before) == same


def test_a_damaged_archive_has_no_digest(tmp_path):
    (tmp_path / "m.mar").write_bytes(b"no archive")
    with pytest.raises(PreflightError, match="damaged"):
        content_digest(tmp_path / "m.mar")
    broken = a_folder(tmp_path / "folder", {**NAMES, "model-config.yaml": b"a: [1"})
    with pytest.raises(PreflightError, match="damaged"):
        content_digest(broken)

"""Archives as they are laid out for a worker, and their digest."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from ts_mps.errors import PreflightError
from ts_mps.torchserve.unpack import content_digest, unpack

FILES = {"MAR-INF/MANIFEST.json": b"{}", "handler.py": b"x = 1\n", "sub/weights.bin": bytes(range(256))}


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def a_folder(path: Path) -> Path:
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def a_mar(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in FILES.items():
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


def test_the_digest_is_of_the_content(tmp_path):
    one, other = a_folder(tmp_path / "one"), a_folder(tmp_path / "other")
    assert content_digest(one) == content_digest(other)
    (one / "__pycache__").mkdir()
    (one / "__pycache__" / "handler.pyc").write_bytes(b"compiled")
    assert content_digest(one) == content_digest(other)
    (one / "handler.py").write_bytes(b"x = 2\n")
    assert content_digest(one) != content_digest(other)
    mar = a_mar(tmp_path / "m.mar")
    before = content_digest(mar)
    mar.write_bytes(mar.read_bytes() + b"\0")
    assert content_digest(mar) != before

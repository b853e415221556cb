"""Bytecode that a machine does not keep is kept for the study, and nothing is changed on any other machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ts_mps.bench.bytecode import with_bytecode

NEVER, FOLDER = "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on the path, without bytecode."""
    folder = tmp_path / "site" / "large_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from large_package import part\n")
    (folder / "part.py").write_text("")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_what_would_be_compiled_in_every_run_is_compiled_once(package: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    environ = with_bytecode({**os.environ, NEVER: "1"}, kept, ["large_package"])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(package.parent)!r}); import large_package"]
    subprocess.run(command, env=environ, check=True)
    assert [file.name.partition(".")[0] for file in sorted(kept.rglob("large_package/*.pyc"))] == ["__init__", "part"]
    assert not (package / "__pycache__").exists(), "nothing is written beside what the user installed"


@pytest.mark.parametrize(
    "environ",
    [{}, {NEVER: ""}, {NEVER: "1", FOLDER: "/somewhere"}],
    ids=["Python writes it itself", "so does it where the variable is empty", "it has a place"],
)
def test_where_python_keeps_it_nothing_is_changed(package: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    assert with_bytecode(environ, tmp_path, ["large_package"]) == environ


def test_where_it_is_there_nothing_is_changed(package: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(package)], check=True)
    assert with_bytecode({NEVER: "1"}, tmp_path, ["large_package"]) == {NEVER: "1"}


def test_packages_that_are_not_there_need_none(tmp_path: Path) -> None:
    assert with_bytecode({NEVER: "1"}, tmp_path, ["no_such_package", "sys"]) == {NEVER: "1"}

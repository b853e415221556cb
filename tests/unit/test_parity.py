"""Our java command against the one that the real ``ts.model_server.start`` makes, word by word."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import ts.model_server

from ts_mps.errors import TsMpsError
from ts_mps.torchserve import arguments, command, java

EFFECTIVE = Path("/run/ts-mps/instances/default/config.properties")
PYTHON = "/run/ts-mps/instances/default/bin/worker-python"
LOG_OPTION = "-Dlog4j.configurationFile="


def with_intended_differences(recorded: list[str], user_has_log_config: bool) -> list[str]:
    """TorchServe's command as ours is meant to be: the one place that lists every difference allowed."""
    ours = list(recorded)
    # 1. The Java found on PATH stands there with its whole path.
    if ours[0] == "java":
        ours[0] = shutil.which("java", path=os.environ["PATH"])
    # 2. --python starts the worker entry.
    python = ours.index("--python") + 1
    assert ours[python] == sys.executable
    ours[python] = PYTHON
    # 3. -f names the effective configuration, also where the user has none.
    if "-f" in ours[python:]:
        ours[ours.index("-f", python) + 1] = str(EFFECTIVE)
    else:
        ours[python + 1 : python + 1] = ["-f", str(EFFECTIVE)]
    # 4. Our log configuration, where the user has none.
    if not user_has_log_config:
        ours.insert(2, f"{LOG_OPTION}file://{command.LOG_CONFIG}")
    return ours


class Recorded(Exception):
    """Ends ``ts.model_server.start`` where it would have started java."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with everything that the cases name, and a machine with a Java of its own."""
    for folder in ("store", "other store", "workflows", "plugins", "temporary", "jdk/bin", "path/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("log.xml", "cpp.yaml"):
        (tmp_path / file).write_text("x")
    for home in ("jdk", "path"):
        (tmp_path / home / "bin" / "java").write_text("#!/bin/sh\n")
        (tmp_path / home / "bin" / "java").chmod(0o755)
        (tmp_path / home / "release").write_text('JAVA_VERSION="17.0.1"\n')
    for name in ("TS_CONFIG_FILE", "TEMP", "JAVA_HOME", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("LOG4J_CONFIGURATION_FILE", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}/path/bin")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def torchserves_command(argv: list[str], monkeypatch) -> list[str]:
    def popen(words, *_, **__):
        raise Recorded(words)

    monkeypatch.setattr(ts.model_server.subprocess, "Popen", popen)
    monkeypatch.setattr(sys, "argv", ["torchserve", *argv])
    with pytest.raises(Recorded) as caught:
        ts.model_server.start()
    return caught.value.args[0]


def our_command(argv: list[str]) -> list[str]:
    return command.java_command(
        arguments.parse(argv, os.environ),
        environ=os.environ,
        java=java.find_java(os.environ).path,
        python=PYTHON,
        config=EFFECTIVE,
        log_config=command.LOG_CONFIG,
    )


S = "--model-store store"
CASES: list[tuple[str, dict[str, str], str]] = [
    # flags
    (S, {}, ""),
    (f"--start {S}", {}, ""),
    (f"{S} --foreground", {}, ""),
    (f"{S} --ncs", {}, ""),
    (f"{S} --no-config-snapshots", {}, ""),
    (f"{S} --disable-token-auth", {}, ""),
    (f"{S} --dt", {}, ""),
    (f"{S} --enable-model-api", {}, ""),
    (f"{S} --models a.mar", {}, ""),
    (f"{S} --models ALL", {}, ""),
    (f"{S} --models a=a.mar b=https://x/b.mar ./c.mar", {}, ""),
    (f"{S} --workflow-store workflows", {}, ""),
    (f"{S} --plugins-path plugins", {}, ""),
    (f"{S} --ppath plugins/*", {}, ""),
    (f"{S} --ppath plugins/a.jar:plugins/b.jar", {}, ""),
    (f"{S} --log-config log.xml", {}, ""),
    (f"{S} --log-config ./temporary/../log.xml", {}, ""),
    (f"{S} --cpp-log-config cpp.yaml", {}, ""),
    (f"{S} --cpp-log-config ./temporary/../cpp.yaml --log-config log.xml", {}, ""),
    (f"--models a.mar --start {S} --ncs --dt --enable-model-api --workflow-store workflows --foreground", {}, ""),
    ("--model-store=store --models=a.mar", {}, ""),
    (f"{S} --model-store workflows", {}, ""),
    # abbreviations
    ("--model-s store --mode", {}, "error"),
    ("--model-s store --models x.mar", {}, ""),
    ("--model-st store --wo workflows --fo --no-c --di --en --pl plugins --lo log.xml --cp cpp.yaml", {}, ""),
    ("--t user.properties --model-s=store --sta", {}, "a=1"),
    # config keys that only the launcher reads
    ("--ts-config user.properties", {}, "model_store=store"),
    ("--ts-config user.properties", {}, "model_store = store \nload_models=ALL"),
    ("--ts-config user.properties", {}, "model_store=other store"),
    (f"--ts-config user.properties {S}", {}, "model_store=workflows"),
    (f"--ts-config user.properties {S}", {}, "vmargs=-Xmx1g -XX:+UseG1GC"),
    (f"--ts-config user.properties {S}", {}, "vmargs=  -Da=b=c   -Xms1m  "),
    (f"--ts-config user.properties {S}", {}, "vmargs="),
    (f"--ts-config user.properties {S}", {}, "#vmargs=-Xmx1g"),
    (f"--ts-config user.properties {S}", {}, "vmargs: -Xmx1g"),
    (f"--ts-config user.properties {S}", {}, "vmargs=-Xmx1g \\\n  -Xms1m"),
    (f"--ts-config user.properties {S}", {}, "vmargs=-Dlog4j.configurationFile=file:///x.xml -Xmx1g"),
    (f"--ts-config user.properties {S}", {}, "vmargs=-Xmx1g -Dlog4j2.configurationFile=x.xml"),
    (
        f"--ts-config user.properties {S} --log-config log.xml",
        {},
        "vmargs=-Dlog4j.configurationFile=file:///x.xml -Xmx1g",
    ),
    (
        f"--ts-config user.properties {S} --log-config log.xml",
        {},
        "vmargs=-Dlog4j2.configurationFile=file:///x.xml -Xmx1g",
    ),
    (f"--ts-config user.properties {S}", {}, "plugins_path=plugins"),
    (f"--ts-config user.properties {S}", {}, "plugins_path=plugins/*.jar"),
    (f"--ts-config user.properties {S} --plugins-path store", {}, "plugins_path=plugins\nvmargs=-Xmx1g"),
    (f"--ts-config user.properties {S}", {}, ""),
    # config files that the launcher does not look at
    (S, {"write": "config.properties"}, "vmargs=-Xmx1g\nmodel_store=workflows"),
    # variables
    (S, {"TS_CONFIG_FILE": "user.properties"}, "vmargs=-Xmx2g"),
    ("", {"TS_CONFIG_FILE": "user.properties"}, "model_store=store"),
    (f"{S} --ts-config missing.properties", {"TS_CONFIG_FILE": "user.properties"}, "plugins_path=plugins"),
    (f"{S} --ts-config user.properties", {"TS_CONFIG_FILE": ""}, "vmargs=-Xmx2g"),
    (S, {"JAVA_HOME": "jdk"}, ""),
    (S, {"JAVA_HOME": ""}, ""),
    (S, {"TEMP": "temporary"}, ""),
    (S, {"TEMP": ""}, ""),
    (
        f"--ts-config user.properties {S} --log-config log.xml --dt --ncs",
        {"TEMP": "temporary", "JAVA_HOME": "jdk"},
        "vmargs=-Xmx1g",
    ),
    # what ends with exit code 1, or 2 from the parser
    ("", {}, "error"),
    ("--ts-config user.properties", {}, "error\nnothing=1"),
    ("--model-store missing", {}, "error"),
    ("--model-store log.xml", {}, "error"),
    ("--ts-config missing.properties --model-store store", {}, "error"),
    (S, {"TS_CONFIG_FILE": "missing.properties"}, "error"),
    (f"{S} --workflow-store missing", {}, "error"),
    (f"{S} --log-config missing.xml", {}, "error"),
    (f"{S} --cpp-log-config missing.yaml", {}, "error"),
    (S, {"TEMP": "missing"}, "error"),
    (f"{S} --unknown", {}, "error"),
    (f"{S} --start --stop", {}, "error"),
    ("--mode store", {}, "error"),
]
WORKING = [case for case in CASES if not case[2].startswith("error")]
FAILING = [case for case in CASES if case[2].startswith("error")]


def _prepare(monkeypatch, environ: dict[str, str], content: str) -> None:
    Path(environ.get("write", "user.properties")).write_text(content + "\n")
    for name, value in environ.items():
        if name.isupper():
            monkeypatch.setenv(name, value)


def test_there_are_enough_cases():
    assert len(WORKING) >= 40


@pytest.mark.parametrize(("words", "environ", "content"), WORKING)
def test_same_command(place, monkeypatch, words, environ, content):
    _prepare(monkeypatch, environ, content)
    recorded = torchserves_command(words.split(), monkeypatch)
    has_log_config = "--log-config" in words or "--lo " in words or "configurationFile=" in content
    assert our_command(words.split()) == with_intended_differences(recorded, has_log_config)


@pytest.mark.parametrize(("words", "environ", "content"), FAILING)
def test_same_exit_code(place, monkeypatch, words, environ, content):
    _prepare(monkeypatch, environ, content.removeprefix("error"))
    monkeypatch.setattr(ts.model_server.subprocess, "Popen", lambda *_, **__: pytest.fail("TorchServe started java"))
    monkeypatch.setattr(sys, "argv", ["torchserve", *words.split()])
    with pytest.raises(SystemExit) as theirs:
        ts.model_server.start()
    with pytest.raises(TsMpsError) as ours:
        our_command(words.split())
    assert ours.value.exit_code == theirs.value.code
    assert ours.value.what.endswith(".")

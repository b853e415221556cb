from __future__ import annotations

from pathlib import Path

import pytest

from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.command import LOG_CONFIG, has_log_config, java_command, server_environment


def _command(args=None, environ=None, log_config=LOG_CONFIG):
    return java_command(
        args or StartArguments(model_store="."),
        environ=environ or {},
        java="java",
        python="python",
        config=Path("/c"),
        log_config=log_config,
    )


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_log_config_with_a_blank_in_its_path_is_a_url(tmp_path):
    assert f"-Dlog4j.configurationFile=file://{tmp_path}/a%20b.xml" in _command(log_config=tmp_path / "a b.xml")


@pytest.mark.parametrize(
    "environ",
    [
        {"LOG4J_CONFIGURATION_FILE": "/x.xml"},
        {"JAVA_TOOL_OPTIONS": "-Xmx1g -Dlog4j2.configurationFile=/x.xml"},
        {"JDK_JAVA_OPTIONS": "-Dlog4j.configurationFile=/x.xml"},
    ],
)
def test_log_config_of_the_environment_is_kept(environ):
    assert has_log_config([], environ)
    assert not any(word.startswith("-Dlog4j") for word in _command(environ=environ))


@pytest.mark.parametrize("name", ["log4j2.xml", "log4j2-test.xml", "log4j2.properties"])
def test_log_config_in_the_working_directory_is_kept(tmp_path, name):
    assert not has_log_config([], {})
    (tmp_path / name).touch()
    assert has_log_config([], {})


def test_environment():
    before = {
        "PATH": "/usr/bin",
        "HOME": "/root",
        "TS_CONFIG_FILE": "mine.properties",
        "TS_NUMBER_OF_GPU": "9",
        "CUDA_VISIBLE_DEVICES": "GPU-1234",
    }
    after = server_environment(before, config=Path("/run/c"), bin_folder=Path("/run/bin"), gpus=(2, 0))
    assert after == {
        "PATH": "/run/bin:/usr/bin",
        "HOME": "/root",
        "TS_CONFIG_FILE": "/run/c",
        "CUDA_VISIBLE_DEVICES": "2,0",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert before["TS_NUMBER_OF_GPU"] == "9"


def test_environment_without_gpus_hides_them_all():
    after = server_environment({}, config=Path("/c"), bin_folder=Path("/bin-of-ours"), gpus=())
    assert after["CUDA_VISIBLE_DEVICES"] == ""
    assert after["PATH"].startswith("/bin-of-ours:")
    assert "TS_CONFIG_FILE" not in after

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import ts
import yaml
from ts.metrics import system_metrics

from ts_mps.batching import metrics as batching_metrics
from ts_mps.guardian.metrics import command
from ts_mps.paths import InstancePaths
from ts_mps.torchserve import metrics
from ts_mps.torchserve.command import LOG_CONFIG
from ts_mps.torchserve.config import DATA
from ts_mps.torchserve.metrics import Sample

#: What TorchServe's frontend accepts as a metric line (its class Metric), and the part that we look at.
LINE = re.compile(r"\s*([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)\|#hostname:([^,]+),([0-9]+)")
HOST = {
    "CPUUtilization",
    "MemoryUsed",
    "MemoryAvailable",
    "MemoryUtilization",
    "DiskUsage",
    "DiskUtilization",
    "DiskAvailable",
}


def _split(output: str):
    """The metric lines as matches, and the lines behind the empty one."""
    head, _, tail = output.partition("\n\n")
    matches = [LINE.fullmatch(line) for line in head.splitlines()]
    assert all(matches), head
    return matches, tail.splitlines()


@pytest.fixture(autouse=True)
def empty_list():
    # TorchServe's module collects in a list of its own, once per process.
    system_metrics.system_metrics.clear()


@pytest.fixture
def run(tmp_path):
    """The command as the frontend runs it, for an instance in a folder whose name has a blank."""
    paths = InstancePaths(tmp_path / "a home" / "default")
    paths.root.mkdir(parents=True)

    def go(gpus=(), pids="", before=""):
        words = " ".join(command(paths, gpus)).split()
        if before:
            code = f"import runpy, sys\n{before}\nsys.argv[1:] = {words[2:]!r}\n"
            words = ["-c", f"{code}runpy.run_module({words[1]!r}, run_name='__main__', alter_sys=True)"]
        pythonpath = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, *words],
            input=f"{pids}\n",
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
            env={**os.environ, "PYTHONPATH": pythonpath},
        )

    return go


def _names(done):
    return {match[1] for match in _split(done.stdout)[0]}


def test_as_the_frontend_runs_it(run):
    done = run(pids=f"{os.getpid()},4194303")
    matches, tail = _split(done.stdout)
    assert {match[1] for match in matches if not match[1].startswith("ts_mps_")} == HOST
    assert {match[4] for match in matches if match[1] in HOST} == {"Level:Host"}
    (line,) = tail
    pid, size = line.split(":")
    assert int(pid) == os.getpid()
    assert int(size) > 1024 * 1024
    assert (done.stderr, done.returncode) == ("", 0)


def test_without_workers(run):
    assert _split(run().stdout)[1] == []


def test_without_driver_the_host_metrics_go_on(run):
    no_driver = (
        "import pynvml\ndef fail(): raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)\npynvml.nvmlInit = fail"
    )
    done = run(["GPU-1", "GPU-2"], before=no_driver)
    assert _names(done) >= HOST and "ts_mps_guardian_up" in _names(done), done.stderr
    assert "GPU-1, GPU-2" in done.stderr
    # Without GPUs nothing of NVML is even imported.
    done = run(before="sys.modules['pynvml'] = None")
    assert _names(done) >= HOST
    assert (done.stderr, done.returncode) == ("", 0)


def test_what_costs_time_is_not_imported(run):
    """The collection is a fresh process once a minute: torch or TorchServe's API client would double its price."""
    done = run(before="import atexit\natexit.register(lambda: print(sorted(sys.modules), file=sys.stderr))")
    imported = done.stderr
    assert done.returncode == 0 and "'ts_mps.guardian.series'" in imported
    assert not any(f"'{name}'" in imported for name in ("torch", "requests", "rich", "ts_mps.torchserve.api"))


class FakeNvml:
    """Two GPUs, of which one has fallen off the bus and one cannot tell its utilization."""

    class NVMLError(Exception):
        pass

    nvmlMemory_v2 = 2

    def __init__(self):
        self.open = 0

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid == "GPU-lost":
            raise self.NVMLError("GPU is lost")
        return uuid

    def nvmlDeviceGetIndex(self, device):
        return {"GPU-a": 3, "GPU-mig": 4}[device]

    def nvmlDeviceGetMemoryInfo(self, device, version):
        assert version == self.nvmlMemory_v2
        return SimpleNamespace(total=8 << 30, used=2 << 30, free=6 << 30)

    def nvmlDeviceGetUtilizationRates(self, device):
        if device == "GPU-mig":
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=37, memory=1)


def test_gpu_metrics(monkeypatch, capsys):
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    output = io.StringIO()
    metrics.collect(["GPU-lost", "GPU-a", "GPU-mig"], (), {}, "host", output)
    matches, _ = _split(output.getvalue())
    gpu = [(match[1], match[2], float(match[3]), match[4]) for match in matches if match[1].startswith("GPU")]
    assert gpu == [
        ("GPUMemoryUtilization", "Percent", 25.0, "Level:Host,DeviceId:3"),
        ("GPUMemoryUsed", "Megabytes", 2048.0, "Level:Host,DeviceId:3"),
        ("GPUUtilization", "Percent", 37.0, "Level:Host,DeviceId:3"),
        ("GPUMemoryUtilization", "Percent", 25.0, "Level:Host,DeviceId:4"),
        ("GPUMemoryUsed", "Megabytes", 2048.0, "Level:Host,DeviceId:4"),
    ]
    assert {match[1] for match in matches} >= HOST
    assert nvml.open == 0
    complaints = capsys.readouterr().err
    assert "GPU-lost" in complaints
    assert "GPU-mig" in complaints


@pytest.mark.parametrize("pids", ["", ",", "x", "-1", "4194303,", "1:2", "\u0661"])
def test_no_line_that_would_end_the_frontends_metrics(pids):
    assert metrics.worker_memory(metrics.asked_pids(f"{pids}\n")) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (True, "1"),
        (150122594304, "150122594304"),
        (1.5, "1.5"),
        (1e-9, "0"),
        (1e22, "1" + "0" * 22),
        (-0.25, "-0.25"),
    ],
)
def test_numbers_are_written_as_the_frontend_reads_them(value, text):
    match = LINE.fullmatch(Sample("name", value, "Count").line("host", 7))
    assert match is not None and (match[3], match[4], match[5], match[6]) == (text, "", "host", "7")


def test_no_label_breaks_the_line_or_shifts_the_others():
    labels = (("model_name", "a,b|c:d e\n"), ("cause", ""), ("gpu", "0"))
    match = LINE.fullmatch(Sample("name", 1, "Count", labels).line("host", 7))
    assert match is not None
    pairs = [pair.split(":") for pair in match[4].split(",")]
    assert pairs == [["model_name", "a_b_c_d_e_"], ["cause", "none"], ["gpu", "0"]]


def test_metrics_yaml_is_torchserves():
    theirs = yaml.safe_load((Path(ts.__file__).parent / "configs" / "metrics.yaml").read_text())
    theirs.pop("dimensions")  # only there to be referred to
    ours = yaml.safe_load((DATA / "metrics.yaml").read_text())
    added = [one["name"] for many in ours["model_metrics"].values() for one in many if one["name"].startswith("Batch")]
    for kind in ours["ts_metrics"]:
        ours["ts_metrics"][kind] = [one for one in ours["ts_metrics"][kind] if not one["name"].startswith("ts_mps_")]
    for kind in list(ours["model_metrics"]):
        ours["model_metrics"][kind] = [one for one in ours["model_metrics"][kind] if one["name"] not in added]
        if not ours["model_metrics"][kind]:
            del ours["model_metrics"][kind]
    assert ours == theirs
    # What a handler writes is what is declared.
    assert sorted(added) == sorted([*batching_metrics.NAMES, *batching_metrics.GAUGES])


def test_log_config_is_quiet_and_loses_nothing():
    root = ElementTree.parse(LOG_CONFIG).getroot()
    appenders = {node.get("name"): node for node in root.find("Appenders")}
    loggers = {node.get("name"): node for node in root.find("Loggers") if node.tag == "Logger"}

    def targets(node):
        return {ref.get("ref"): ref.get("level") for ref in node.findall("AppenderRef")}

    everything = [root.find("Loggers/Root"), *loggers.values()]
    assert {name for node in everything for name in targets(node)} == set(appenders)
    assert targets(root.find("Loggers/Root")) == {"console": None, "ts_log": None}
    assert root.find("Loggers/Root").get("level") == "warn"
    # With appenders of its own and additivity, a logger would write each line twice.
    assert all(node.get("additivity") == "false" for node in loggers.values() if targets(node))
    # Nothing of the frontend speaks below WARN per request.
    frontend = {name for name in loggers if name.startswith("org.pytorch")}
    assert frontend == {"org.pytorch.serve.ModelServer", "org.pytorch.serve.util.TokenAuthorization"}
    assert targets(loggers["MODEL_LOG"]) == {"console": "warn", "model_log": None}
    assert targets(loggers["ACCESS_LOG"]) == {"access_log": None}
    files = {name: node.get("fileName") for name, node in appenders.items() if node.tag == "RollingFile"}
    assert files == {
        **{name: f"${{logs}}/{name}.log" for name in ("ts_log", "model_log", "access_log")},
        **{name: f"${{metrics}}/{name}.log" for name in ("ts_metrics", "model_metrics")},
    }
    values = {node.get("name"): node.text for node in root.find("Properties")}
    assert values["logs"] == "${env:LOG_LOCATION:-logs}"
    assert values["metrics"] == "${env:METRICS_LOCATION:-logs}"

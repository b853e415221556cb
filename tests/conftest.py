"""Fixtures for all tests: short folders, the simulated NVIDIA programs, and what `pytest -m gpu` needs."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings
from serving import Serving
from support import SIMULATOR, mps_processes, simulated_gpu, why_no_gpu

# On cores that others share an example may wait for a moment; `timeout` in pyproject.toml ends what hangs.
settings.register_profile("ts-mps", deadline=None)
settings.load_profile("ts-mps")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and why_no_gpu():
        pytest.skip(f"needs an NVIDIA GPU with MPS: {why_no_gpu()}")


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path leaves room for a UNIX socket; MPS processes left in it are ended."""
    folder = Path(tempfile.mkdtemp(prefix="tsm", dir="/tmp"))
    yield folder
    for process in mps_processes(folder):
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def simulator(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """One simulated H200 with MPS, for this process and, by the returned environment, for others."""
    monkeypatch.setenv("PATH", f"{SIMULATOR}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{SIMULATOR}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"))
    monkeypatch.setenv("SIM_GPUS", json.dumps([simulated_gpu()]))
    monkeypatch.setenv("SIM_NVML_MODES", str(short_dir / "compute-modes.json"))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", _simulated_nvml())
    return dict(os.environ)


@pytest.fixture
def serving(short_dir: Path) -> Iterator[Serving]:
    """`ts-mps` and TorchServe in a folder of their own; whatever a test leaves running is killed."""
    here = Serving(short_dir, dict(os.environ))
    yield here
    here.kill_everything()


@pytest.fixture
def simulated(short_dir: Path, simulator: dict[str, str]) -> Iterator[Serving]:
    """The same on a simulated GPU."""
    here = Serving(short_dir, simulator)
    yield here
    here.kill_everything()


def _simulated_nvml() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pynvml", SIMULATOR / "pynvml.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

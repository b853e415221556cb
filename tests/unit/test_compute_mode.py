from __future__ import annotations

import json
from pathlib import Path

import pytest

from ts_mps.errors import MpsError
from ts_mps.gpu.compute_mode import restore, set_exclusive
from ts_mps.gpu.inventory import Gpu, read_inventory
from ts_mps.paths import GpuPaths

DEFAULT, PROHIBITED, EXCLUSIVE = 0, 2, 3


@pytest.fixture
def gpu(simulator: dict[str, str]) -> Gpu:
    return read_inventory().gpus[0]


@pytest.fixture
def paths(short_dir: Path) -> GpuPaths:
    return GpuPaths(short_dir)


def mode_now(gpu: Gpu) -> str:
    return next(one.compute_mode for one in read_inventory().gpus if one.uuid == gpu.uuid)


def set_by_hand(simulator: dict[str, str], gpu: Gpu, mode: int) -> None:
    Path(simulator["SIM_NVML_MODES"]).write_text(json.dumps({gpu.uuid: mode}))


def test_there_and_back(gpu: Gpu, paths: GpuPaths):
    set_exclusive(gpu, paths)
    assert mode_now(gpu) == "Exclusive_Process"
    assert paths.compute_mode.exists()
    restore(gpu.uuid, paths)
    assert mode_now(gpu) == "Default"
    assert not paths.compute_mode.exists()
    restore(gpu.uuid, paths)
    assert mode_now(gpu) == "Default"


def test_second_instance_does_not_take_ours_for_the_old_mode(simulator: dict[str, str], gpu: Gpu, paths: GpuPaths):
    set_by_hand(simulator, gpu, PROHIBITED)
    set_exclusive(gpu, paths)
    set_exclusive(gpu, paths)
    restore(gpu.uuid, paths)
    assert mode_now(gpu) == "Prohibited"


def test_a_gpu_that_was_exclusive_stays_so(simulator: dict[str, str], gpu: Gpu, paths: GpuPaths):
    set_by_hand(simulator, gpu, EXCLUSIVE)
    set_exclusive(gpu, paths)
    assert not paths.compute_mode.exists()
    restore(gpu.uuid, paths)
    assert mode_now(gpu) == "Exclusive_Process"


def test_a_mode_set_by_somebody_else_since_is_left(simulator: dict[str, str], gpu: Gpu, paths: GpuPaths):
    set_exclusive(gpu, paths)
    set_by_hand(simulator, gpu, PROHIBITED)
    restore(gpu.uuid, paths)
    assert mode_now(gpu) == "Prohibited"
    assert not paths.compute_mode.exists()


def test_old_mode_is_on_disk_before_the_change(gpu: Gpu, paths: GpuPaths, monkeypatch: pytest.MonkeyPatch):
    import pynvml

    def killed_before_the_change(handle: object, mode: int) -> None:
        assert json.loads(paths.compute_mode.read_text()) == {"compute_mode": DEFAULT}
        raise KeyboardInterrupt

    monkeypatch.setattr(pynvml, "nvmlDeviceSetComputeMode", killed_before_the_change)
    with pytest.raises(KeyboardInterrupt):
        set_exclusive(gpu, paths)
    restore(gpu.uuid, paths)
    assert mode_now(gpu) == "Default"


def test_without_permission(gpu: Gpu, paths: GpuPaths, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIM_NVML_NO_PERMISSION", "1")
    with pytest.raises(MpsError) as caught:
        set_exclusive(gpu, paths)
    assert caught.value.what == (
        f"GPU 0 ({gpu.uuid}) could not be set to compute mode EXCLUSIVE_PROCESS: it needs root."
    )
    assert "--exclusive" in caught.value.remedy
    assert not paths.compute_mode.exists()


def test_restore_that_fails_can_be_tried_again(gpu: Gpu, paths: GpuPaths, monkeypatch: pytest.MonkeyPatch):
    set_exclusive(gpu, paths)
    monkeypatch.setenv("SIM_NVML_NO_PERMISSION", "1")
    with pytest.raises(MpsError) as caught:
        restore(gpu.uuid, paths)
    assert caught.value.remedy == f"Run as root: nvidia-smi -i {gpu.uuid} -c 0"
    assert paths.compute_mode.exists()
    monkeypatch.delenv("SIM_NVML_NO_PERMISSION")
    restore(gpu.uuid, paths)
    assert mode_now(gpu) == "Default"


def test_gpu_that_has_gone(gpu: Gpu, paths: GpuPaths, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIM_GPUS", "[]")
    with pytest.raises(MpsError, match="Not Found"):
        set_exclusive(gpu, paths)


def test_damaged_file_means_the_drivers_default(gpu: Gpu, paths: GpuPaths):
    set_exclusive(gpu, paths)
    paths.compute_mode.write_text("{")
    restore(gpu.uuid, paths)
    assert mode_now(gpu) == "Default"

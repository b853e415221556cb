"""Memory of a GPU through NVML: what stands still, what was the most, who else is there, what changed hands."""

from __future__ import annotations

import re
import threading
import time
from types import SimpleNamespace

import pytest

from ts_mps.errors import PreflightError, TsMpsError
from ts_mps.profile import measure, memory, single
from ts_mps.profile.job import Book
from ts_mps.profile.memory import GpuMemory

MIB = 2**20


class Nvml:
    """One GPU whose memory a test changes."""

    class NVMLError(Exception):
        pass

    nvmlMemory_v2 = 2

    def __init__(self) -> None:
        self.used = 10 * MIB
        self.compute: dict[int, str | bytes] = {}
        self.open = 0

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle, version=1):
        # The first version counts what the driver keeps for itself as used.
        return SimpleNamespace(used=self.used + (0 if version == 2 else 600 * MIB), total=1000 * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=pid) for pid in self.compute]

    def nvmlDeviceGetMPSComputeRunningProcesses(self, handle):
        raise self.NVMLError

    def nvmlSystemGetProcessName(self, pid):
        if self.compute[pid] == "":
            raise self.NVMLError
        return self.compute[pid]


@pytest.fixture
def nvml(monkeypatch):
    made = Nvml()
    monkeypatch.setattr(memory, "pynvml", made)
    return made


@pytest.fixture
def gpu(nvml):
    with GpuMemory("GPU-0") as found:
        yield found
    assert nvml.open == 0


def test_what_the_driver_keeps_is_not_used_by_processes(gpu):
    assert (gpu.used(), gpu.total()) == (10 * MIB, 1000 * MIB)


def test_a_driver_without_the_second_version_still_answers(gpu, nvml, monkeypatch):
    def first_only(handle, version=1):
        if version == 2:
            raise nvml.NVMLError
        return SimpleNamespace(used=7)

    monkeypatch.setattr(nvml, "nvmlDeviceGetMemoryInfo", first_only)
    assert gpu.used() == 7


def test_settled_waits_until_memory_stands_still(gpu, nvml):
    def shrink():
        for _ in range(4):
            time.sleep(0.1)
            nvml.used -= MIB

    thread = threading.Thread(target=shrink)
    thread.start()
    assert gpu.settled() == 6 * MIB
    thread.join()


def test_the_peak_is_seen_though_it_passes(gpu, nvml):
    with gpu.peak() as peak:
        nvml.used = 500 * MIB
        time.sleep(0.1)
        nvml.used = 20 * MIB
    assert peak.bytes == 500 * MIB


def test_strangers_are_all_but_mps_servers(gpu, nvml):
    nvml.compute = {5: "/usr/bin/python3", 6: "/usr/bin/nvidia-cuda-mps-server", 7: b"nvidia-cuda-mps-server", 8: ""}
    assert gpu.strangers() == (5, 8)


H200 = SimpleNamespace(index=0, name="NVIDIA H200")


@pytest.mark.parametrize(("compute", "used"), [({5: "python"}, 10), ({}, 300)])
def test_a_gpu_in_use_is_refused_or_noted(gpu, nvml, compute, used):
    nvml.compute, nvml.used = compute, used * MIB
    with pytest.raises(PreflightError, match="--shared-gpu"):
        measure._check_alone(SimpleNamespace(shared_gpu=False), Book(), H200, gpu)
    book = Book()
    measure._check_alone(SimpleNamespace(shared_gpu=True), book, H200, gpu)
    assert "may be wrong" in book.notes[0]


def test_a_free_gpu_needs_no_word(gpu):
    book = Book()
    measure._check_alone(SimpleNamespace(shared_gpu=False), book, H200, gpu)
    assert book.notes == []


@pytest.mark.parametrize("drift", [100, -100])
def test_a_neighbour_that_comes_or_goes_meanwhile_is_noticed(drift):
    with pytest.raises(TsMpsError, match=re.escape(f"changed by {drift:+d} MiB")):
        single._check_drift(SimpleNamespace(shared_gpu=False), Book(), drift * MIB)
    book = Book()
    single._check_drift(SimpleNamespace(shared_gpu=True), book, drift * MIB)
    assert len(book.notes) == 1
    single._check_drift(SimpleNamespace(shared_gpu=False), book, 60 * MIB)
    assert len(book.notes) == 1


def test_memory_that_comes_back_late_is_no_drift(gpu, nvml):
    nvml.used = 600 * MIB
    threading.Timer(0.5, lambda: setattr(nvml, "used", 11 * MIB)).start()
    assert single._drift(gpu, 10 * MIB) == MIB


def run(batch_size: int = 4, each: int = 100 * MIB):
    return SimpleNamespace(batch_size=batch_size, context=each, weights=0, peak=0)


@pytest.mark.parametrize(
    ("workers", "mps", "mode", "job_mps", "why"),
    [
        (9, True, "Default", True, ""),
        (10, True, "Default", True, "0.10 GiB each they need more than the 1.0 GiB"),
        (8, True, "Default", True, ""),
        (49, True, "Default", True, "takes 48 clients"),
        (49, False, "Default", True, "GiB each"),
        (2, False, "Exclusive_Process", False, "Exclusive_Process"),
        (1, False, "Exclusive_Process", False, ""),
        (1, False, "Exclusive_Process", True, "Exclusive_Process"),
        (2, True, "Exclusive_Process", True, ""),
    ],
)
def test_a_series_ends_where_no_more_workers_can_run(gpu, workers, mps, mode, job_mps, why):
    book = Book(runs=[run()])
    job = SimpleNamespace(mps=job_mps, gpu=SimpleNamespace(compute_mode=mode), scaling_batch=4)
    said = measure._too_many(job, SimpleNamespace(cap=48), book, gpu, workers, mps)
    assert (why in said) if why else said == ""

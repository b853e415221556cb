"""What is made of NVML's answers beyond utilisation, by a stand-in for its module."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from ts_mps.gpu.readings import process_memory, sm_activity


class Nvml:
    """GPU "a" gives its SMs' activity, "old" is no Hopper, "lost" has fallen off the bus; 30 % in the first second."""

    class NVMLError(Exception):
        pass

    NVML_GPM_METRICS_GET_VERSION = 1
    NVML_GPM_METRIC_SM_UTIL = 2

    def __init__(self, value: float = 30.0, result: int = 0) -> None:
        self.open, self.samples, self.answer = 0, 0, (value, result)

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid == "lost":
            raise self.NVMLError("GPU is lost")
        return uuid

    def nvmlGpmQueryDeviceSupport(self, device):
        return SimpleNamespace(isSupportedDevice=int(device != "old"))

    def nvmlGpmSampleAlloc(self):
        self.samples += 1
        return object()

    def nvmlGpmSampleFree(self, sample):
        self.samples -= 1

    def nvmlGpmSampleGet(self, device, sample):
        if device == "refused":
            raise self.NVMLError("Insufficient Permissions")

    def c_nvmlGpmMetricsGet_t(self):
        return SimpleNamespace(metrics=[SimpleNamespace(metricId=0, nvmlReturn=-1, value=0.0)])

    def nvmlGpmMetricsGet(self, asked):
        assert asked.version == 1 and asked.numMetrics == 1 and asked.sample1 is not asked.sample2
        assert asked.metrics[0].metricId == self.NVML_GPM_METRIC_SM_UTIL
        asked.metrics[0].value, asked.metrics[0].nvmlReturn = self.answer
        return asked

    def nvmlDeviceGetComputeRunningProcesses(self, device):
        rows = {"a": [(1, 100), (2, None)], "old": [(1, 10), (3, 7)]}
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in rows[device]]


@pytest.fixture
def nvml(monkeypatch):
    def use(module):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return use


def test_activity_of_the_gpus_that_give_it(nvml):
    module, slept = nvml(Nvml()), []
    assert sm_activity(["a", "old", "lost", "refused"], 0.2, slept.append) == {"a": 0.3}
    assert slept == [0.2], "all GPUs are watched at the same time"
    assert (module.open, module.samples) == (0, 0), "what NVML gave is given back"


@pytest.mark.parametrize("answer", [(30.0, 3), (float("nan"), 0), (float("inf"), 0), (-1.0, 0)])
def test_a_value_that_is_none_is_left_out(nvml, answer):
    module = nvml(Nvml(*answer))
    assert sm_activity(["a"], 0.2, lambda seconds: None) == {}
    assert (module.open, module.samples) == (0, 0)


def test_nobody_waits_where_no_gpu_gives_it(nvml):
    nvml(Nvml())
    slept = []
    assert sm_activity(["old", "lost"], 0.2, slept.append) == {} and slept == []


def test_memory_by_process_over_all_gpus(nvml):
    nvml(Nvml())
    assert process_memory(["a", "old", "lost"]) == {1: 110, 3: 7}


def test_without_module_driver_or_newer_functions(nvml, monkeypatch):
    nvml(None)
    assert (sm_activity(["a"], 0.2), process_memory(["a"])) == ({}, {})
    broken = nvml(Nvml())
    monkeypatch.setattr(broken, "nvmlInit", lambda: (_ for _ in ()).throw(Nvml.NVMLError("Driver Not Loaded")))
    assert (sm_activity(["a"], 0.2), process_memory(["a"])) == ({}, {})
    nvml(SimpleNamespace(nvmlInit=lambda: None, nvmlShutdown=lambda: None, NVMLError=Nvml.NVMLError))
    assert (sm_activity(["a"], 0.2), process_memory(["a"])) == ({}, {})

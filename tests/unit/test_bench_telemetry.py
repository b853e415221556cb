"""What is seen of GPUs while a load runs, and of the machine before it."""

from __future__ import annotations

import json
import os
import sys

import pytest
from support import simulated_gpu

from ts_mps.bench.cores import Division
from ts_mps.bench.machine import different, read_machine
from ts_mps.bench.records import GpuSample
from ts_mps.bench.telemetry import GpuWatch, counted
from ts_mps.gpu.inventory import read_inventory

UUID = str(simulated_gpu()["uuid"])


def test_what_nvml_does_not_say_is_none(simulated):
    with GpuWatch([UUID, "GPU-gone"]) as watch:
        (sample,) = watch.look()
    assert sample.gpu == UUID and sample.memory is not None
    assert (sample.sm_clock, sample.temperature, sample.power, sample.throttled) == (None, None, None, ())


def test_everything_that_nvml_says_is_there(simulated, monkeypatch):
    nvml = sys.modules["pynvml"]
    for name, value in {"NVML_CLOCK_SM": 1, "NVML_TEMPERATURE_GPU": 0}.items():
        monkeypatch.setattr(nvml, name, value, raising=False)
    answers = {
        "nvmlDeviceGetClockInfo": 1980,
        "nvmlDeviceGetTemperature": 71,
        "nvmlDeviceGetPowerUsage": 650_500,
        # Idle and application clocks are no throttling; a power cap and a slowdown are.
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x1 | 0x2 | 0x4 | 0x40,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(nvml, name, lambda *_, answer=answer: answer, raising=False)
    with GpuWatch([UUID]) as watch:
        (sample,) = watch.look()
    assert (sample.sm_clock, sample.temperature, sample.power) == (1980, 71, 650.5)
    assert sample.throttled == ("power cap", "temperature (hardware)")


def test_without_a_gpu_there_is_nothing_to_see():
    with GpuWatch([]) as watch:
        assert watch.look() == ()


def test_only_samples_of_the_counted_time_are_kept():
    sample = GpuSample(0.0, UUID, 50, 1, 1, 1, 1.0)
    samples = [(100.0 + 0.5 * turn, (sample,)) for turn in range(10)]
    assert [one.at for one in counted(samples, 101.2, 103.0)] == [0.3, 0.8, 1.3, 1.8]


def test_the_machine_is_told_and_compared(simulated):
    gpus = read_inventory().gpus
    division = Division((0,), (1,))
    plain = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    machine = read_machine(division, gpus, plain)
    assert json.loads(json.dumps(machine)) == machine
    assert machine["gpus"][0]["uuid"] == UUID and machine["driver"]
    assert machine["division"] == {"server": [0], "generator": [1]}
    assert machine["versions"]["torchserve"] == "0.12.0" and machine["memory"] > 0
    assert different(machine, read_machine(division, gpus, plain)) == ""
    assert "division" in different(machine, read_machine(Division((1,), (0,)), gpus))
    assert "gpus" in different(machine, read_machine(division, []))
    three = read_machine(division, gpus, {**plain, "OMP_NUM_THREADS": "3", "AWS_SECRET_ACCESS_KEY": "x"})
    assert "OMP_NUM_THREADS=3" in three["environment"] and "AWS" not in str(three["environment"])
    assert "environment" in different(machine, three)


def test_a_driver_that_is_gone_is_told(simulated, monkeypatch):
    gpus = read_inventory().gpus
    monkeypatch.delenv("SIM_GPUS")
    with pytest.raises(Exception, match="NVML does not answer"):
        read_machine(Division((0,), (1,)), gpus)

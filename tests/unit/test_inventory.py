from __future__ import annotations

import builtins
import json
import os

import pytest
from support import simulated_gpu

from ts_mps.gpu import inventory as module
from ts_mps.gpu.inventory import Inventory, MigInstance, free_memory, read_inventory

pytestmark = pytest.mark.usefixtures("simulator")


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch):
    def set_gpus(*gpus: dict[str, object]) -> Inventory:
        monkeypatch.setenv("SIM_GPUS", json.dumps(gpus))
        return read_inventory()

    return set_gpus


def test_every_field_of_a_gpu(has):
    inventory = has(simulated_gpu(compute_mode=3))
    assert inventory.driver_version == "580.159.04"
    assert inventory.problem == ""
    (gpu,) = inventory.gpus
    assert (gpu.index, gpu.uuid, gpu.name) == (0, "GPU-00000000-0000-4000-8000-000000000000", "NVIDIA H200")
    assert gpu.compute_capability == (9, 0)
    assert (gpu.memory_total, gpu.memory_free) == (150754820096, 150122594304)
    assert gpu.compute_mode == "Exclusive_Process"
    assert not gpu.mig_enabled
    assert gpu.cores == tuple(sorted(os.sched_getaffinity(0)))


def test_mig(has):
    inventory = has(simulated_gpu(mig=True), simulated_gpu(1, no_mig=True))
    assert [gpu.mig_enabled for gpu in inventory.gpus] == [True, False]


@pytest.mark.parametrize(
    ("capability", "cores", "sms"),
    [
        ([9, 0], 16896, 132),  # H200
        ([8, 0], 6912, 108),  # A100
        ([7, 5], 2560, 40),  # T4
        ([8, 9], 7424, 58),  # L4
        ([6, 1], 3840, 30),  # P40
        ([99, 0], 4096, 0),  # one that the table does not know
    ],
)
def test_sms_are_counted_from_cores(has, capability, cores, sms):
    assert has(simulated_gpu(compute_capability=capability, gpu_cores=cores)).gpus[0].sms == sms


def test_sms_unknown_to_nvml(has):
    assert has(simulated_gpu()).gpus[0].sms == 0


@pytest.mark.parametrize(("node", "seen"), [("1\n", 1), ("0\n", 0), ("-1\n", None), ("", None)])
def test_numa_node_is_the_pci_slots(has, tmp_path, monkeypatch, node, seen):
    folder = tmp_path / "0001:b1:00.0"
    folder.mkdir()
    (folder / "numa_node").write_text(node)
    monkeypatch.setattr(module, "PCI_DEVICES", tmp_path)
    gpus = has(simulated_gpu(bus="00000001:B1:00.0"), simulated_gpu(1, bus="00000001:C1:00.0"), simulated_gpu(2)).gpus
    assert [gpu.numa_node for gpu in gpus] == [seen, None, None]


def test_mig_instances(has):
    one = {
        "uuid": "MIG-1",
        "name": "NVIDIA H200 MIG 1g.18gb",
        "memory_total": 18,
        "memory_free": 17,
        "sms": 16,
        "slices": 1,
    }
    three = {**one, "uuid": "MIG-3", "name": "NVIDIA H200 MIG 3g.71gb", "memory_total": 71, "sms": 60, "slices": 3}
    split, whole = has(
        simulated_gpu(mig=True, mig_instances=[one, None, three]), simulated_gpu(1, mig_instances=[one])
    ).gpus
    assert split.mig == (MigInstance("MIG-1", "1g.18gb", 18, 17, 16, 1), MigInstance("MIG-3", "3g.71gb", 71, 17, 60, 3))
    assert whole.mig == ()  # MIG is off


def test_free_memory_now(has, monkeypatch):
    gpu = has(simulated_gpu(memory_free=12345)).gpus[0]
    assert free_memory(gpu.uuid) == 12345
    assert free_memory("GPU-of-somebody-else") is None
    monkeypatch.delenv("SIM_GPUS")
    assert free_memory(gpu.uuid) is None


def test_cores_are_those_that_this_process_may_use(has):
    usable = max(os.sched_getaffinity(0))
    (near, far, unknown) = has(
        simulated_gpu(cores=[usable, 4000]), simulated_gpu(1, cores=[4001]), simulated_gpu(2, cores=[])
    ).gpus
    assert (near.cores, far.cores, unknown.cores) == ((usable,), (), ())


def test_cores_unknown_to_nvml(has):
    gpu = simulated_gpu()
    del gpu["cores"]
    assert has(gpu).gpus[0].cores == ()


def test_a_lost_gpu_does_not_hide_the_others(has):
    inventory = has(simulated_gpu(0), simulated_gpu(1, lost=True), simulated_gpu(2))
    assert [gpu.index for gpu in inventory.gpus] == [0, 2]
    assert inventory.problem == "GPU 1 cannot be read: GPU is lost."


def test_driver_without_gpus(has):
    assert has() == Inventory((), "580.159.04", "The NVIDIA driver is loaded but sees no GPU.")


def test_no_driver(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SIM_GPUS")
    assert read_inventory() == Inventory((), "", "This machine has no NVIDIA driver: libnvidia-ml.so.1 was not found.")


def test_driver_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIM_GPUS", "driver not loaded")
    assert read_inventory() == Inventory((), "", "The NVIDIA driver does not answer: Driver Not Loaded.")


def test_nvml_module_missing(monkeypatch: pytest.MonkeyPatch):
    really = builtins.__import__

    def without_pynvml(name: str, *args, **kwargs):
        if name == "pynvml":
            raise ImportError("No module named 'pynvml'")
        return really(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pynvml)
    assert read_inventory().problem == "NVML cannot be used: No module named 'pynvml'."

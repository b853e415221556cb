from __future__ import annotations

import dataclasses
import json
import os

import pytest
from support import simulated_gpu

from ts_mps.errors import PlanError
from ts_mps.gpu.inventory import Gpu, Inventory, MigInstance, read_inventory
from ts_mps.gpu.machine import MachineFacts
from ts_mps.gpu.measured import remember_cap
from ts_mps.guardian.choice import MpsChoice
from ts_mps.guardian.site import _ranges, read_machine, site_here, site_of
from ts_mps.paths import Home

GIB = 2**30


def gpu(index: int = 0, **more: object) -> Gpu:
    uuid = f"GPU-{index:08x}-0000-4000-8000-000000000000"
    whole = Gpu(index, uuid, "NVIDIA H200", (9, 0), 140 * GIB, 130 * GIB, "Default", False, (0, 1), 132)
    return dataclasses.replace(whole, **more)


def instance(number: int, profile: str = "3g.71gb", sms: int = 60, slices: int = 3) -> MigInstance:
    return MigInstance(f"MIG-{number:08x}-0000-4000-8000-000000000000", profile, 70 * GIB, 69 * GIB, sms, slices)


def machine(*gpus: Gpu, version: int = 13000, **measured: int) -> MachineFacts:
    caps = {uuid.replace("_", "-"): cap for uuid, cap in measured.items()}
    return MachineFacts(Inventory(gpus, "580.159.04", ""), tuple(range(16)), version, caps)


def test_a_gpu_with_what_others_hold():
    site = site_of(machine(gpu()), [gpu()], {}, affinity="numa", attached={gpu().uuid: 3})
    (facts,) = site.gpus
    assert (facts.cap, facts.cap_why, facts.attached) == (48, "control binary 13000", 3)
    assert (facts.memory_total, facts.memory_taken, facts.sms) == (140 * GIB, 10 * GIB, 132)
    assert facts.pipe is None
    assert site.host.set_threads and site.host.affinity == "numa" and site.host.cores == tuple(range(16))
    assert not site_of(machine(), [], {"OMP_NUM_THREADS": "2"}, affinity="none").host.set_threads


def test_caps_follow_the_control_binary_the_connections_and_what_was_measured():
    def cap(facts, **environ):
        return site_of(facts, [gpu()], environ, affinity="none").gpus[0].cap

    assert cap(machine(gpu(), version=13010)) == 60
    assert cap(machine(gpu(), version=13010), CUDA_DEVICE_MAX_CONNECTIONS="8") == 48
    measured = dataclasses.replace(machine(gpu()), measured_caps={gpu().uuid: 40})
    assert cap(measured) == 40


def test_mig_instances_are_gpus_with_caps_of_their_own():
    split = gpu(mig_enabled=True, mig=(instance(1), instance(2, "1g.18gb", 16, 1)))
    site = site_of(machine(split, gpu(1)), [split, gpu(1)], {}, affinity="none")
    assert [facts.name for facts in site.gpus] == [
        "NVIDIA H200 MIG 3g.71gb",
        "NVIDIA H200 MIG 1g.18gb",
        "NVIDIA H200",
    ]
    assert [facts.cap for facts in site.gpus] == [48 * 60 // 132, 48 * 16 // 132, 48]
    assert [facts.sms for facts in site.gpus] == [60, 16, 132]
    assert site.gpus[0].uuid.startswith("MIG-") and site.gpus[0].memory_total == 70 * GIB
    own = dataclasses.replace(machine(split), measured_caps={split.uuid: 44, split.mig[1].uuid: 5})
    assert [facts.cap for facts in site_of(own, [split], {}, affinity="none").gpus] == [44 * 60 // 132, 5]


def test_a_start_does_not_split_a_gpu_in_mig_mode(short_dir):
    split = gpu(mig_enabled=True, mig=(instance(1),))
    inventory = Inventory((split,), "580.159.04", "")
    here = site_here(inventory, [split], MpsChoice(False, "MIG"), "numa", Home(short_dir / "home"), {})
    assert [facts.uuid for facts in here.gpus] == [split.uuid]


def test_mig_mode_without_instances_is_refused():
    with pytest.raises(PlanError, match="in MIG mode and has no instances"):
        site_of(machine(), [gpu(mig_enabled=True)], {}, affinity="none")


def test_fingerprints_do_not_change_with_what_runs():
    def prints(*gpus: Gpu, cores: int = 16) -> dict[str, str]:
        facts = dataclasses.replace(machine(*gpus), cores=tuple(range(cores)))
        return site_of(facts, gpus, {}, affinity="none").fingerprints()

    assert prints(gpu()) == prints(gpu(memory_free=GIB))
    assert prints(gpu()) != prints(gpu(memory_total=139 * GIB))
    assert prints(gpu()) != prints(gpu(1))
    assert prints(gpu()) != prints(gpu(name="NVIDIA H100"))
    assert prints(gpu()) != prints(gpu(), gpu(1))
    assert prints(gpu()) != prints(gpu(), cores=8)
    assert prints() == {"GPUs": "none", "host cores": "0-15"}


def test_this_machine_has_pipes_and_measured_caps(simulator, short_dir, monkeypatch):
    monkeypatch.setenv("SIM_GPUS", json.dumps([simulated_gpu(0), simulated_gpu(1)]))
    home = Home(short_dir / "home")
    home.root.mkdir()
    inventory = read_inventory()
    remember_cap(home.caps, inventory.driver_version, "NVIDIA H200", 13000, 2, 47)
    mps = MpsChoice(True, "why", None, 13000)
    site = site_here(inventory, inventory.gpus[1:], mps, "numa", home, os.environ)
    (facts,) = site.gpus
    assert (facts.index, facts.cap, facts.cap_why) == (1, 47, "measured")
    assert facts.pipe == str(home.gpu(facts.uuid).pipe)
    assert read_machine(inventory, 13010, home, os.environ).measured_caps == {}
    off = site_here(inventory, inventory.gpus, MpsChoice(False, "why"), "numa", home, os.environ)
    assert [gpu.pipe for gpu in off.gpus] == [None, None]


def test_core_lists_are_short():
    assert _ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"
    assert _ranges(()) == ""

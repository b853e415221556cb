"""A machine as a file: what is written is read back, and what cannot be is refused with its place."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.errors import PreflightError, UsageError
from ts_mps.gpu.inventory import COMPUTE_MODES, Gpu, Inventory, MigInstance
from ts_mps.gpu.machine import MachineFacts, machine_from_json, machine_json, read_machine_file

GPU = Gpu(0, "GPU-a", "NVIDIA H200", (9, 0), 150754820096, 150122594304, "Default", False, (0, 1), sms=132, numa_node=0)
MACHINE = MachineFacts(Inventory((GPU,), "580.159.04", ""), (0, 1, 2, 3), 13000, {"GPU-a": 47})


def written(**changes):
    return {**machine_json(MACHINE), **changes}


def with_gpu(**changes):
    value = machine_json(MACHINE)
    return {**value, "gpus": [{**value["gpus"][0], **changes}]}


def through_a_file(value, tmp_path):
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(value))
    return read_machine_file(path)


def test_what_is_written_is_read_back(tmp_path):
    assert through_a_file(machine_json(MACHINE), tmp_path) == MACHINE


instances = st.builds(
    MigInstance,
    uuid=st.uuids().map(lambda uuid: f"MIG-{uuid}"),
    profile=st.sampled_from(["1g.18gb", "3g.71gb"]),
    memory_total=st.just(2**30),
    memory_free=st.integers(0, 2**30),
    sms=st.integers(0, 16),
    slices=st.integers(1, 7),
)


@st.composite
def machines(draw):
    gpus = []
    for index in range(draw(st.integers(1, 4))):
        mig = tuple(draw(st.lists(instances, max_size=3, unique_by=lambda one: one.uuid)))
        total = draw(st.integers(2**33, 2**40))
        gpus.append(
            Gpu(
                index,
                f"GPU-{draw(st.uuids())}",
                draw(st.text(min_size=1).filter(str.strip)),
                draw(st.tuples(st.integers(1, 20), st.integers(0, 9))),
                total,
                draw(st.integers(0, total)),
                draw(st.sampled_from(COMPUTE_MODES)),
                bool(mig) or draw(st.booleans()),
                tuple(sorted(draw(st.sets(st.integers(0, 200))))),
                sms=draw(st.sampled_from([0, 132])),
                numa_node=draw(st.none() | st.integers(0, 8)),
                mig=mig,
            )
        )
    caps = {gpu.uuid: draw(st.integers(1, 100)) for gpu in gpus if draw(st.booleans())}
    cores = tuple(sorted(draw(st.sets(st.integers(0, 500), min_size=1))))
    driver = draw(st.sampled_from(["580.159.04", "590.1"]))
    return MachineFacts(Inventory(tuple(gpus), driver, ""), cores, draw(st.integers(0, 20000)), caps)


@given(machines())
def test_any_machine_is_read_back(machine):
    assert machine_from_json(json.loads(json.dumps(machine_json(machine))), "m.json") == machine


def test_little_is_enough(tmp_path):
    """By hand one writes what counts, memory with its unit."""
    gpu = {"index": 0, "uuid": "GPU-x", "name": "A100", "compute_capability": [8, 0], "memory_total": "80 GiB"}
    machine = through_a_file({"version": 1, "cores": [0, 1], "gpus": [gpu]}, tmp_path)
    assert machine.inventory.gpus == (Gpu(0, "GPU-x", "A100", (8, 0), 80 * 2**30, 80 * 2**30, "Default", False, ()),)
    assert machine.control_version == 0 and machine.measured_caps == {}


MIG = {"uuid": "MIG-1", "profile": "1g.18gb", "memory_total": 2**34, "memory_free": 2**34, "sms": 16, "slices": 1}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "m.json is []; it must be a table"),
        (written(gpus=[]), "m.json lists no GPU"),
        (written(gpus={}), "m.json gpus is {}; it must be a list"),
        (written(gpus=[7]), "m.json: gpus[0] is 7; it must be a table"),
        (written(cores=[]), "cores is []; it must be a list of at least one core"),
        (written(cores=[0, 0]), "different core numbers"),
        (written(cores=[-1]), "cores is [-1]"),
        (written(cores=[True]), "cores is [True]"),
        (written(version=2), "inventory of version 2; this ts-mps reads version 1"),
        (written(control_version=-1), "control_version is -1"),
        (written(driverversion=""), "unknown key 'driverversion'. Did you mean 'driver_version'?"),
        (written(measured_caps={"GPU-a": 0}), "measured_caps GPU-a is 0; it must be a whole number from 1"),
        (written(measured_caps={"GPU-b": 48}), "unknown key 'GPU-b'. Did you mean 'GPU-a'?"),
        ({"version": 1, "cores": [0]}, "m.json lacks the key 'gpus'"),
        (with_gpu(memory=1), "gpus[0] has the unknown key 'memory'"),
        (with_gpu(memory_totl=1), "Did you mean 'memory_total'?"),
        (with_gpu(memory_total=-5), "memory_total is -5"),
        (with_gpu(memory_total=0), "memory_total is 0"),
        (with_gpu(memory_total=2**60), "memory_total is 1152921504606846976"),
        (with_gpu(memory_total=math.nan), "memory_total is nan"),
        (with_gpu(memory_total=True), "memory_total is true"),
        (with_gpu(memory_total="141 GB"), "memory_total is '141 GB'; it must be a size"),
        (with_gpu(memory_free=2**45), "memory_free is 35184372088832; it must be at most its memory_total"),
        (with_gpu(index=-1), "index is -1"),
        (with_gpu(index="0"), "index is '0'"),
        (with_gpu(uuid=""), "uuid is ''; it must be a text that is not empty"),
        (with_gpu(name=None), "name is null"),
        (with_gpu(sms=99999), "sms is 99999"),
        (with_gpu(sms=math.inf), "sms is inf"),
        (with_gpu(compute_capability=[9]), "two whole numbers"),
        (with_gpu(compute_capability=[0, 0]), "two whole numbers"),
        (with_gpu(compute_capability="9.0"), "must be a list"),
        (with_gpu(compute_mode="Shared"), "compute_mode is 'Shared'; it must be one of \"Default\""),
        (with_gpu(mig_enabled=1), "mig_enabled is 1; it must be true or false"),
        (with_gpu(numa_node=-1), "numa_node is -1"),
        (with_gpu(mig=[MIG]), "lists MIG instances, and its mig_enabled is false"),
        (with_gpu(mig_enabled=True, mig=[MIG, MIG]), "the UUID MIG-1 twice"),
        (with_gpu(mig_enabled=True, mig=[{**MIG, "slices": 0}]), "gpus[0].mig[0] slices is 0"),
        (with_gpu(mig_enabled=True, mig=[{**MIG, "memory_total": 2**40}]), "more than the 150754820096 of the GPU"),
        (with_gpu(mig_enabled=True, mig=[{**MIG, "sms": 133}]), "more SMs than the 132 of the GPU"),
        (written(gpus=machine_json(MACHINE)["gpus"] * 2), "the index 0 twice"),
        (
            machine_json(replace(MACHINE, inventory=Inventory((GPU, replace(GPU, index=1)), "", ""))),
            "the UUID GPU-a twice",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(value, says):
    with pytest.raises(PreflightError) as caught:
        machine_from_json(value, "m.json")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"), [(b"{", "is not JSON"), (b"\xff\xfe", "is not text"), (b"[" * 10**5, "is not JSON")]
)
def test_a_file_that_is_no_inventory(tmp_path, content, says):
    path = tmp_path / "m.json"
    path.write_bytes(content)
    with pytest.raises(PreflightError, match=says) as caught:
        read_machine_file(path)
    assert str(path) in caught.value.what


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"m\.json does not exist"):
        read_machine_file(tmp_path / "m.json")
    with pytest.raises(PreflightError, match="cannot be read: Is a directory"):
        read_machine_file(tmp_path)

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.gpu.caps import Cap, cap_of, client_cap, max_connections
from ts_mps.gpu.inventory import Gpu, MigInstance
from ts_mps.gpu.measured import measured_cap, remember_cap

H200 = Gpu(0, "GPU-0", "NVIDIA H200", (9, 0), 143 * 2**30, 143 * 2**30, "Default", False, (), sms=132)

capabilities = st.tuples(st.integers(3, 12), st.integers(0, 9))
versions = st.integers(0, 20000)


@pytest.mark.parametrize(
    ("compute_capability", "version", "connections", "cap"),
    [
        ((6, 1), 13010, 2, 16),
        ((7, 0), 13000, 2, 48),
        ((9, 0), 13000, 2, 48),  # measured
        ((9, 0), 0, 2, 48),
        ((9, 0), 13010, 2, 60),
        ((9, 0), 13010, 1, 60),
        ((9, 0), 13010, 3, 48),
        ((10, 0), 13020, 8, 48),
    ],
)
def test_table(compute_capability: tuple[int, int], version: int, connections: int, cap: int):
    assert client_cap(compute_capability, version, connections) == cap


@given(capabilities, versions, st.integers(1, 32))
def test_more_connections_never_allow_more_clients(capability: tuple[int, int], version: int, connections: int):
    assert client_cap(capability, version, connections + 1) <= client_cap(capability, version, connections)


@given(capabilities, versions, versions)
def test_a_newer_control_program_never_allows_fewer(capability: tuple[int, int], one: int, other: int):
    assert client_cap(capability, min(one, other)) <= client_cap(capability, max(one, other))


@pytest.mark.parametrize(("value", "connections"), [(None, 2), ("1", 1), (" 8 ", 8), ("many", 32), ("-1", 32)])
def test_max_connections(value: str | None, connections: int):
    assert max_connections({} if value is None else {"CUDA_DEVICE_MAX_CONNECTIONS": value}) == connections


def mig(sms: int, slices: int) -> MigInstance:
    return MigInstance("MIG-0", f"{slices}g.18gb", 18 * 2**30, 18 * 2**30, sms, slices)


@pytest.mark.parametrize(
    ("gpu", "version", "connections", "measured", "instance", "cap"),
    [
        (H200, 13000, 2, None, None, Cap(48, "control binary 13000")),
        (H200, 13010, 2, None, None, Cap(60, "control binary 13010")),
        (H200, 13010, 8, None, None, Cap(48, "control binary 13010 with CUDA_DEVICE_MAX_CONNECTIONS=8")),
        (H200, 0, 2, None, None, Cap(48, "control binary of unknown version")),
        (replace(H200, compute_capability=(6, 1)), 13010, 2, None, None, Cap(16, "compute capability 6.1")),
        (H200, 13010, 2, 47, None, Cap(47, "measured")),
        (H200, 13000, 2, 63, None, Cap(63, "measured")),
    ],
)
def test_the_cap_and_where_it_comes_from(gpu, version, connections, measured, instance, cap):
    assert cap_of(gpu, version, connections, measured, instance) == cap


@pytest.mark.parametrize(
    ("gpu", "instance", "measured", "limit", "why"),
    [
        (H200, mig(16, 1), None, 5, "48 for the whole GPU, of whose 132 SMs it has 16"),  # 5.8
        (H200, mig(60, 3), None, 21, "132 SMs it has 60"),  # 21.8
        (H200, mig(132, 7), None, 48, ""),
        (H200, mig(2, 1), None, 1, ""),  # 0.7
        (replace(H200, sms=0), mig(16, 1), None, 6, "7 slices it has 1"),  # 6.9
        (H200, mig(0, 3), None, 20, "7 slices it has 3"),  # 20.6
        (H200, mig(66, 3), 40, 20, "measured: 40 for the whole GPU"),
    ],
)
def test_a_mig_instance_has_its_part_of_the_cap(gpu, instance, measured, limit, why):
    cap = cap_of(gpu, 13000, 2, measured, instance)
    assert cap.limit == limit and why in cap.why


@given(st.integers(0, 200), st.integers(1, 7), st.integers(0, 200), st.none() | st.integers(1, 200))
def test_a_part_is_never_more_than_the_whole_nor_nothing(sms, slices, more, measured):
    gpu = replace(H200, sms=sms + more)
    whole = cap_of(gpu, 13000, 2, measured).limit
    assert 1 <= cap_of(gpu, 13000, 2, measured, mig(sms, slices)).limit <= whole


def test_a_measured_cap_is_kept_for_its_driver_gpu_binary_and_connections(tmp_path):
    path = tmp_path / "caps.json"
    machine = ("580.159.04", "NVIDIA H200", 13000, 2)
    assert measured_cap(path, *machine) is None
    remember_cap(path, *machine, 47)
    remember_cap(path, "590.1", *machine[1:], 60)
    assert measured_cap(path, *machine) == 47
    assert measured_cap(path, "590.1", *machine[1:]) == 60
    for place, other in enumerate(("570.1", "NVIDIA H100", 13010, 8)):
        assert measured_cap(path, *machine[:place], other, *machine[place + 1 :]) is None
    remember_cap(path, *machine, 48)
    assert measured_cap(path, *machine) == 48


@pytest.mark.parametrize("limit", ["0", "-1", "true", '"48"', "null", "47.5"])
def test_a_damaged_file_counts_as_none(tmp_path, limit):
    path = tmp_path / "caps.json"
    machine = ("580.159.04", "NVIDIA H200", 13000, 2)
    remember_cap(path, *machine, 47)
    whole = path.read_text()
    path.write_text(whole.replace('"limit": 47', f'"limit": {limit}'))
    assert path.read_text() != whole and measured_cap(path, *machine) is None
    for text in ("", "[]", "{}", whole.replace('"version": 1', '"version": 9')):
        path.write_text(text)
        assert measured_cap(path, *machine) is None

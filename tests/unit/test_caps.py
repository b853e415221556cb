from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.gpu.caps import client_cap, max_connections

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

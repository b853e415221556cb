"""Which runs are void because of what their workers were."""

from __future__ import annotations

from pathlib import Path

import pytest
from benching import arm
from support import simulated_gpu

from ts_mps.bench import proof
from ts_mps.bench.proof import Witness, clients_anywhere, listed_clients, why_changed, why_void
from ts_mps.errors import MpsError

ON, OFF = arm(3, mps=True), arm(3)


@pytest.mark.parametrize(
    ("one", "witness", "sentence"),
    [
        (ON, Witness((1, 2, 3), frozenset({1, 2, 3, 99})), ""),
        (OFF, Witness((1, 2, 3), frozenset({99})), ""),
        (ON, Witness((1, 2, 3), frozenset({1, 3})), "2 of 3 workers were MPS clients: 2 did not stand"),
        (ON, Witness((1, 2, 3), frozenset()), "0 of 3 workers were MPS clients: 1, 2, 3 did not stand"),
        (OFF, Witness((1, 2, 3), frozenset({2})), "workers were MPS clients, and none may be: 2"),
        (ON, Witness((1, 2), frozenset({1, 2})), "2 of 3 workers were READY"),
        (OFF, Witness((1, 2, 3, 4), frozenset()), "4 of 3 workers were READY"),
        (OFF, Witness((1, 2, 3), frozenset(), ("Its guardian is gone.",)), "Its guardian is gone."),
    ],
)
def test_only_what_was_planned_counts(one, witness, sentence):
    found = why_void(one, witness, "before the load")
    assert (found == "") == (sentence == "") and sentence in found
    assert not found or found.startswith("Before the load ")


def test_other_workers_at_the_end_than_at_the_beginning_are_told():
    before = Witness((1, 2, 3), frozenset())
    assert why_changed(before, before) == ""
    assert "2 died during the load" in why_changed(before, Witness((1, 3, 4), frozenset()))


def test_clients_come_from_the_daemons_list(simulated, monkeypatch):
    from ts_mps.gpu.inventory import read_inventory
    from ts_mps.mps.daemon import acquire
    from ts_mps.paths import Home

    gpu = read_inventory().gpus[0]
    lease = acquire(gpu, Home(simulated.folder / "h").gpu(gpu.uuid), "bench", environ=simulated.environ)
    try:
        pipe = Path(lease.daemon.pipe)
        assert listed_clients([pipe]) == frozenset()
        (pipe / "sim-clients").mkdir(exist_ok=True)
        (pipe / "sim-clients" / "1").touch()
        assert listed_clients([pipe]) == {1}
        # A daemon where CUDA looks by default makes clients of workers that were started without MPS.
        monkeypatch.setattr(proof, "DEFAULT_PIPE", pipe)
        assert clients_anywhere([str(simulated_gpu()["uuid"])]) == {1}
    finally:
        lease.release()
    nowhere = simulated.folder / "nowhere"
    with pytest.raises(MpsError):
        listed_clients([nowhere])
    monkeypatch.setattr(proof, "DEFAULT_PIPE", nowhere)
    assert clients_anywhere([]) == frozenset()

"""The fault table on real GPUs under load: every worker is back under MPS in time, and nobody else noticed.

TS_MPS_CHAOS_WORKERS (4) and TS_MPS_CHAOS_CLIENTS (8) are those of each GPU. What was seen of each fault is printed at
once, a line of a table.
"""

from __future__ import annotations

import os

import pytest
from breakable import REAL
from breaking import HEAD, Outcome, Scene
from serving import Serving
from support import eventually, mps_processes

from ts_mps.gpu.inventory import read_inventory

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

WORKERS = int(os.environ.get("TS_MPS_CHAOS_WORKERS", "4"))
CLIENTS = int(os.environ.get("TS_MPS_CHAOS_CLIENTS", "8"))
#: What is broken on the first GPU, one after the other.
FAULTS = (
    "worker killed",
    "MMU fault",
    "server killed",
    "daemon killed",
    "worker hung",
    "out of memory",
    "daemon hung",
    "guardian killed",
)
#: What the client of a request that breaks something is told.
OWN = {
    "MMU fault": (503, "CUDA error 700: an illegal memory access was encountered"),
    # Ending the client ends its kernel as well, so that the worker still says why before it leaves.
    "worker hung": (503, "the MPS client has been terminated by the server"),
    "out of memory": (507, "Out of resources"),
}


@pytest.mark.parametrize("gpus", [1, 2])
def test_every_fault_is_made_good_in_time(serving: Serving, gpus: int, capsys) -> None:
    if len(read_inventory().gpus) < gpus:
        pytest.skip(f"needs {gpus} GPUs")
    uuids = [gpu.uuid for gpu in read_inventory().gpus[:gpus]]
    serving.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
    scene = Scene(serving, REAL, gpus=gpus, workers=WORKERS, clients=CLIENTS)
    outcomes: list[Outcome] = []
    with capsys.disabled():
        print(f"\n{gpus} GPU(s), {WORKERS} workers and {CLIENTS} clients on each\n{HEAD}")
        with scene:
            for fault in FAULTS:
                outcomes.append(scene.breaks(fault, "gpu0"))
                print(outcomes[-1].row(), flush=True)
                if outcomes[-1].trouble:
                    break
        stopped = serving.ts_mps("stop")
    assert [sentence for outcome in outcomes for sentence in outcome.wrong] + scene.unexplained == []
    for outcome in outcomes:
        if outcome.fault in OWN:
            status, text = OWN[outcome.fault]
            assert outcome.blow.own is not None
            assert outcome.blow.own[0] == status and text in outcome.blow.own[1], outcome.blow.own
    assert stopped.returncode == 0, stopped.stderr
    assert serving.left() == []
    assert eventually(lambda: mps_processes(serving.folder) == [])

"""From ts-mps.toml over the plan to the worker's environment: the real TorchServe, NVIDIA's programs by stand-ins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from serving import CLIENT, Serving
from support import mps_processes

#: Answers with what it was given.
TELLING = CLIENT.replace(
    'return [b"served"] * len(data)',
    'import json; return [json.dumps({k: v for k, v in os.environ.items() if k.startswith("CUDA_MPS_")})]',
)


def start(serving: Serving, settings: str, **environ: str) -> tuple[int, str]:
    """Plan with these settings and start the plan; exit code and stderr."""
    serving.environ["OMP_NUM_THREADS"] = "1"  # the worker then leaves torch's threads alone and need not import it
    file, plan = serving.folder / "ts-mps.toml", serving.folder / "plan.json"
    file.write_text(settings)
    model = serving.archive("client", TELLING)
    where = ("--model-store", str(serving.store), "--ts-config", str(serving.config), "--ncs", "--models", model)
    planned = serving.ts_mps("plan", *where, "--settings", str(file), "-o", str(plan), **environ)
    assert planned.returncode == 0, planned.stderr
    done = serving.start("--models", model, "--plan", str(plan), **environ)
    return done.returncode, done.stderr


@pytest.fixture
def mps(simulated: Serving):
    yield simulated
    assert simulated.ts_mps("stop").returncode in (0, 7)
    assert simulated.left() == [] and mps_processes(simulated.folder) == []


def test_memory_limit_and_priority_reach_the_worker_and_the_status(mps: Serving) -> None:
    settings = '[models.client]\nmemory_limit = "3 GiB"\npriority = "below-normal"\n'
    users = {"CUDA_MPS_CLIENT_PRIORITY": "0", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=1G"}
    code, said = start(mps, settings, **users)
    assert code == 0, said
    status = mps.status()
    assert status.as_planned, status.problems
    (worker,) = status.workers
    given = json.loads(mps.api().predict("client", b""))
    assert given.pop("CUDA_MPS_PIPE_DIRECTORY") == mps.state().gpus[0].pipe
    assert given["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=3072M" and given["CUDA_MPS_CLIENT_PRIORITY"] == "1"
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in given
    assert worker.got is not None
    assert (worker.got.memory_limit, worker.got.priority) == (3 * 2**30, 1)
    assert (worker.got.thread_percentage, worker.got.sms, worker.got.checked) == (None, None, None)
    shown = mps.ts_mps("status")
    assert shown.returncode == 0 and "3.0 GiB, low priority" in shown.stdout


def test_a_percentage_that_cannot_be_checked_refuses_the_worker(mps: Serving) -> None:
    """There is no CUDA behind a simulated GPU; nothing may pass for checked that was not."""
    code, said = start(mps, "[models.client]\nthread_percentage = 50\n")
    assert code == 6
    assert "with a thread percentage of 50 was not loaded, because its arithmetic could not be checked" in said
    assert not list(Path(mps.folder).glob("home/gpus/*/pipe/sim-clients/*")), "the handler was not loaded"

"""Plans that are started: the real TorchServe and command line, on the CPU and on simulated GPUs."""

from __future__ import annotations

import json
from pathlib import Path

from serving import ECHO
from support import eventually, simulated_gpu

from ts_mps.plan.model import Plan
from ts_mps.plan.profile import BatchRun, Profile, ScaleRun
from ts_mps.torchserve.digest import content_digest


def plan_command(serving, *arguments: str) -> list[str]:
    return ["plan", *serving.start_command(*arguments)[4:]]


def test_a_plan_from_a_file_and_one_made_at_the_start(serving):
    """Both on the CPU; the file's worker count is not what the archive says."""
    serving.archive("echo", ECHO, workers=1)
    file = str(serving.folder / "plan.json")
    made = serving.ts_mps(*plan_command(serving, "--models", "echo.mar", "--workers", "2", "-o", file))
    assert made.returncode == 0, made.stderr
    assert not serving.home.root.exists(), "a plan makes nothing"
    plan = Plan.from_json(json.loads(Path(file).read_text()))
    assert len(plan.slots) == 2 and not plan.mps

    other = serving.start("--models", "echo.mar", "--plan", file, "--workers", "3")
    assert other.returncode == 2 and "contradict each other" in other.stderr
    serving.archive("ranker", ECHO)
    other = serving.start("--models", "all", "--plan", file)
    assert other.returncode == 4 and "model ranker version 1.0 is loaded and not in it" in other.stderr

    started = serving.start("--models", "echo.mar", "--plan", file)
    assert started.returncode == 0, started.stderr
    assert [record.slot for record in serving.workers()] == list(plan.slots)
    assert serving.api().predict("echo", b"hello") == b"hello"
    assert serving.status().as_planned, serving.status().problems
    assert serving.ts_mps("stop").returncode == 0

    (serving.run_folder / "ts-mps.toml").write_text('[models.echo]\nworkers = "1-3"\n[plan]\ncores_per_worker = 0\n')
    started = serving.start("--models", "echo.mar", TS_MPS_PLAN="auto")
    assert started.returncode == 0, started.stderr
    planned = Plan.from_json(json.loads(serving.paths().plan.read_text()))
    assert 1 <= len(planned.slots) <= 3 and len(serving.workers()) == len(planned.slots)
    assert serving.status().as_planned, serving.status().problems
    assert serving.ts_mps("stop").returncode == 0
    assert serving.left() == []


def test_a_plan_for_another_machine_is_refused_and_mps_goes_off_where_it_does_not_pay(simulated):
    simulated.environ["OMP_NUM_THREADS"] = "1"
    archive = simulated.store / simulated.archive("echo", ECHO, workers=1)
    models = ("--models", "echo.mar")
    file = str(simulated.folder / "plan.json")
    made = simulated.ts_mps(*plan_command(simulated, *models, "-o", file))
    assert made.returncode == 0, made.stderr
    assert Plan.from_json(json.loads(Path(file).read_text())).mps

    before = simulated.environ["SIM_GPUS"]
    simulated.environ["SIM_GPUS"] = json.dumps([simulated_gpu(1, name="NVIDIA H100")])
    refused = simulated.start(*models, "--plan", file)
    assert refused.returncode == 4, refused.stderr
    assert "NVIDIA H200, GPU-00000000" in refused.stderr and "NVIDIA H100, GPU-00000001" in refused.stderr
    simulated.environ["SIM_GPUS"] = before

    # One worker fills the GPU, and MPS slows it down: what the profile says, the start does.
    run = BatchRun(1, None, 132, 10.0, 9.0, 11.0, 9.9, 50, 519 * 2**20, 2**20, 2**20)
    scaling = tuple(
        ScaleRun(workers, mps, 1, rate, rate, rate)
        for workers in (1, 2)
        for mps, rate in ((False, 100.0), (True, 80.0))
    )
    digest = content_digest(archive)
    profile = Profile("echo", "echo.mar", digest, "NVIDIA H200", 132, (run,), scaling, 0.4, {})
    (simulated.store / "echo.profile.json").write_text(json.dumps(profile.as_json()))
    started = simulated.start(*models, "--plan", "auto")
    assert started.returncode == 0, started.stderr
    told = " ".join(started.stderr.split())
    assert "100" in told and "80" in told and "without MPS" in told, told
    state = simulated.state()
    assert state.mps == "off" and [gpu.pipe for gpu in state.gpus] == [None]
    assert simulated.api().predict("echo", b"hello") == b"hello"
    assert simulated.ts_mps("stop").returncode == 0
    assert eventually(lambda: simulated.left() == []), simulated.left()

"""LitServe as an engine of a study: the real one, on the CPU, with a tiny text model."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import requests
from serving import CLIENT
from support import eventually

from ts_mps.bench.cores import usable_cores
from ts_mps.bench.load import prepare, read_bodies, workload
from ts_mps.bench.proof import why_void
from ts_mps.bench.records import Arm
from ts_mps.bench.report.reading import read_study
from ts_mps.bench.server import Server, make_server
from ts_mps.bench.site import ServerError, Site

if importlib.util.find_spec("litserve") is None:
    pytest.skip("needs litserve: pip install 'ts-mps[peers]'", allow_module_level=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The tiny text model and what is sent to it, by name of the workload."""
    folder = tmp_path_factory.mktemp("workloads")
    names = ("text-tiny", "texts-tiny", "generation-tiny")
    return {name: prepare(workload(name), folder / name) for name in names}


def site(made, **fields: object) -> Site:
    (content_type,) = {body.content_type for body in read_bodies(made.bodies)}
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return Site(
        "model", made.archive, None, tuple(usable_cores()), environ, **{"content_type": content_type or "", **fields}
    )


def arm(engine: str, workers: int = 1, batch_size: int = 4, **fields: object) -> Arm:
    return Arm(f"{engine} {workers}", workers, batch_size, False, engine=engine, device="cpu", **fields)


def answers(server: Server, made, count: int = 6) -> list[tuple[int, str, bytes]]:
    got = []
    for body in read_bodies(made.bodies)[:count]:
        headers = {"Content-Type": body.content_type or ""}
        answer = requests.post(f"{server.url()}/predictions/model", data=body.body, headers=headers, timeout=60)
        got.append((answer.status_code, answer.headers.get("content-type", ""), answer.content))
    return got


@pytest.mark.parametrize("name", ["text-tiny", "texts-tiny", "generation-tiny"])
def test_its_answers_are_those_of_torchserve(served, name):
    """Arrays, texts and JSON, byte by byte; the batch size is one, so that LitServe makes no batches."""
    found = {}
    for engine in ("torchserve", "litserve"):
        server = make_server(site(served[name]), arm(engine, batch_size=1))
        try:
            server.start()
            found[engine] = answers(server, served[name])
        finally:
            server.end()
    assert all(status == 200 and body for status, _, body in found["torchserve"])
    assert found["litserve"] == found["torchserve"]


def test_its_workers_are_known_and_nothing_of_it_is_left(served):
    here, two = site(served["text-tiny"]), arm("litserve", workers=2)
    server = make_server(here, two)
    try:
        server.start()
        witness = server.witness()
        assert len(witness.workers) == 2 and why_void(two, witness, "before the load") == ""
        names = {pid: " ".join(psutil.Process(pid).cmdline()) for pid in witness.workers}
        assert all("spawn_main" in name for name in names.values()), names
        frontend = server.frontend()
        assert frontend and not set(frontend) & set(witness.workers)
        family = [psutil.Process(pid) for pid in (*frontend, *witness.workers)]
        assert {status for status, _, _ in answers(server, served["text-tiny"])} == {200}

        refused = requests.post(f"{server.url()}/predictions/model", data=b"no array", timeout=60)
        assert refused.status_code != 200, "what the handler refuses is refused here too"

        os.kill(witness.workers[0], signal.SIGKILL)
        assert eventually(lambda: len(server.witness().workers) < 2, 20.0)
        assert "of 2 workers were READY" in why_void(two, server.witness(), "after the load")
    finally:
        began = time.monotonic()
        server.end()
    assert time.monotonic() - began < 25, "it ends when it is asked to, and need not be killed"
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family)


def test_a_model_that_does_not_load_is_told_at_once(served, tmp_path):
    (tmp_path / "MAR-INF").mkdir()
    (tmp_path / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelName": "m", "handler": "h.py"}}')
    (tmp_path / "h.py").write_text("raise ValueError('the weights are of another model')\n")
    broken = Site("model", tmp_path, None, tuple(usable_cores()), dict(os.environ), ready_timeout=60.0)
    server = make_server(broken, arm("litserve"))
    try:
        with pytest.raises(ServerError, match="LitServe ended by itself") as caught:
            server.start()
        assert "the weights are of another model" in caught.value.details + server.logs()
    finally:
        server.end()


def test_both_engines_in_the_blocks_of_one_study(serving):
    file = serving.run_folder / "study.json"
    times = ("--seconds", "1", "--warm-up", "0.5", "--connections", "8", "--blocks", "1", "--seed", "3")
    words = ("--workload", "text-tiny", "--engine", "ts-mps,litserve", "--workers", "1", "--batch-sizes", "4")
    serving.environ["OMP_NUM_THREADS"] = "1"
    serving.link_checkout()
    done = serving.call(serving.command("bench", "compare", *words, *times, "-o", str(file)))
    assert done.returncode == 0, done.stderr
    study = read_study(file)
    assert {one.name for one in study.arms} == {
        "1 worker x 4, CPU",
        "litserve: 1 worker x 4, CPU",
        "no-op, 1 worker x 4",
    }
    for run in study.runs:
        assert run.counts, run.failure + run.details
        assert run.result is not None and not run.result.errors, "both answer what the first one answered"
        assert run.frontend_cores > 0 and run.worker_cores > 0
    assert len(str(study.workload["archive_sha256"])) == 64, "a workload's content is named as well"
    report = serving.ts_mps("bench", "report", str(file))
    assert report.returncode == 0, report.stderr
    assert "litserve: 1 worker x 4, CPU" in report.stdout


@pytest.mark.parametrize(
    "words", [["--workload", "text-tiny", "--engine", "ts-mps,litserve"], ["--reproduce", "results"]]
)
def test_litserve_that_is_not_installed_is_told_with_the_command(monkeypatch, capsys, tmp_path, words):
    from ts_mps.cli.main import main

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "litserve" else real(name))
    assert main(["bench", "compare", *words, "-o", str(tmp_path / "out")]) == 3
    assert "pip install 'ts-mps[peers]'" in " ".join(capsys.readouterr().err.split())


def test_payloads_of_several_types_are_refused(tmp_path, monkeypatch, capsys):
    from ts_mps.cli.main import main

    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.txt").write_text("b")
    archive = tmp_path / "model"
    (archive / "MAR-INF").mkdir(parents=True)
    manifest = '{"runtime": "python", "model": {"modelName": "m", "modelVersion": "1.0", "handler": "h.py"}}'
    (archive / "MAR-INF" / "MANIFEST.json").write_text(manifest)
    (archive / "h.py").write_text("")
    monkeypatch.chdir(tmp_path)
    words = ["--archive", "model", "--payload", "a.json", "b.txt", "--engine", "litserve"]
    assert main(["bench", "compare", *words]) == 3
    assert "LitServe takes payloads of one content type" in " ".join(capsys.readouterr().err.split())
    assert not Path("study.json").exists()


ON_ITS_GPU = CLIENT.replace("        return", '        assert context.system_properties["gpu_id"] == 0\n        return')


def test_its_workers_are_proven_clients_on_a_simulated_gpu(simulated):
    file, payload = simulated.run_folder / "study.json", simulated.folder / "payload.txt"
    payload.write_bytes(b"hello")
    simulated.environ["OMP_NUM_THREADS"] = "1"
    archive = str(simulated.store / simulated.archive("client", ON_ITS_GPU))
    times = ("--seconds", "1", "--warm-up", "0.5", "--connections", "4", "--blocks", "1")
    words = ("--archive", archive, "--payload", str(payload), "--engine", "litserve", "--workers", "2")
    done = simulated.call(simulated.command("bench", "compare", *words, "--batch-sizes", "2", *times, "-o", str(file)))
    assert done.returncode == 0, done.stderr
    study = read_study(file)
    assert {run.arm: (run.clients, run.failure) for run in study.runs} == {
        "litserve: 1 worker x 2, MPS off": (0, ""),
        "litserve: 2 workers x 2, MPS off": (0, ""),
        "litserve: 2 workers x 2, MPS on": (2, ""),
    }

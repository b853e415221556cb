"""`ts-mps bench compare` end to end: the real TorchServe and the real Locust, on the CPU and on a simulated GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from serving import BROKEN, CLIENT, ECHO, Serving
from support import eventually

from ts_mps.bench.report.reading import read_study
from ts_mps.bench.schedule import make_schedule

# Not by importing it: that would patch this process for gevent.
if importlib.util.find_spec("locust") is None:
    pytest.skip("needs locust: pip install 'ts-mps[bench]'", allow_module_level=True)

#: A variable that everything inherits that a study of a test starts.
MARK = "BENCH_TEST"


@pytest.fixture
def marked(serving):
    """`ts-mps` whose studies can be told from those of others: all that they start inherits a variable."""
    yield from _marked(serving)


@pytest.fixture
def marked_simulated(simulated):
    """The same on a simulated GPU."""
    yield from _marked(simulated)


def _marked(here: Serving) -> Iterator[Serving]:
    here.environ[MARK] = str(here.folder)
    here.environ["OMP_NUM_THREADS"] = "1"  # workers then need not import torch
    (here.folder / "payload.txt").write_bytes(b"hello")
    yield here
    for process in started(here):
        process.kill()


def compare(here: Serving, archive: str, *more: str) -> list[str]:
    """The command's words for an archive of the store."""
    served = ("--archive", str(here.store / archive), "--payload", str(here.folder / "payload.txt"))
    times = ("--seconds", "1", "--warm-up", "0.5", "--connections", "4", "--no-ceiling")
    return here.command("bench", "compare", *served, *times, *more)


def started(here: Serving) -> list[psutil.Process]:
    """Living processes that a study of this test has started: servers, workers, daemons, generators."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(MARK) == str(here.folder) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if ours:
            found.append(process)
    return found


def left(here: Serving) -> list[str]:
    """What a study left running."""
    lines = []
    for process in started(here):
        with suppress(psutil.Error):  # it has just gone
            lines.append(" ".join(process.cmdline()))
    return lines


def sending(here: Serving) -> bool:
    """Whether a generator has been told what to send; it stands by while its server gets ready."""
    for process in started(here):
        with suppress(psutil.Error):
            if "locustfile.py" in " ".join(process.cmdline()) and Path(process.cwd(), "spec.json").exists():
                return True
    return False


def wait_for_line(process: subprocess.Popen[str], word: str, timeout: float = 90.0) -> str:
    """Read the output until a line holds the word; everything until then."""
    deadline, read = time.monotonic() + timeout, ""
    assert process.stdout is not None
    while word not in read:
        line = process.stdout.readline()
        assert line and time.monotonic() < deadline, f"no line with {word!r}:\n{read}"
        read += line
    return read


def test_a_comparison_that_is_interrupted_resumed_and_reported(marked):
    file = marked.run_folder / "study.json"
    command = compare(marked, marked.archive("echo", ECHO), "--workers", "1,2", "--batch-sizes", "2", "--blocks", "2")
    process = marked.popen([*command, "-o", str(file)])
    wait_for_line(process, "run 2 of 4")
    time.sleep(3)  # in the middle of a start
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "interrupted by SIGINT" in output and f"--resume {file}" in output
    assert left(marked) == []
    kept = read_study(file)
    assert len(kept.runs) == 1 and kept.incomplete == "It was interrupted by SIGINT."

    refused = marked.call([*command, "-o", str(file)])
    assert refused.returncode == 3 and "exists" in refused.stderr and "--resume" in refused.stderr
    other = marked.call([*command, "--resume", str(file), "--seed", "8"])
    assert other.returncode == 3 and "its seed is 0, and this call's is 8" in other.stderr

    done = marked.call([*command, "--resume", str(file)])
    assert done.returncode == 0, done.stderr
    study = read_study(file)
    assert study.incomplete == "" and study.runs[0] == kept.runs[0]
    assert [arm.name for arm in sorted(study.arms, key=lambda arm: arm.workers)] == [
        "1 worker x 2, CPU",
        "2 workers x 2, CPU",
    ]
    schedule = make_schedule([arm.name for arm in study.arms], 2, study.seed)
    assert [(run.block, run.arm) for run in study.runs] == [(turn.block, turn.arm) for turn in schedule]
    server, generator = (set(study.machine["division"][side]) for side in ("server", "generator"))
    assert server and generator and not server & generator
    for run in study.runs:
        assert run.counts, run.failure + run.details
        assert run.result is not None and run.result.answered > 10 and not run.result.errors
        assert abs(sum(run.result.per_second) - run.result.answered) <= 4, "counted is what ended in the second"
        assert run.clients == 0 and run.ready_seconds > 0
        assert 0 < run.frontend_cores <= 1.5 and 0 < run.worker_cores <= 1.5 and run.result.generator_cores > 0
    report = marked.ts_mps("bench", "report", str(file), "-o", str(marked.run_folder / "report"))
    assert report.returncode == 0, report.stderr
    assert "2 workers x 2, CPU" in (marked.run_folder / "report" / "report.html").read_text()
    assert left(marked) == []


def test_a_server_that_dies_in_the_middle_costs_its_run_which_is_made_again(marked):
    file = marked.run_folder / "study.json"
    command = compare(marked, marked.archive("echo", ECHO), "--workers", "1", "--seconds", "4", "--blocks", "2")
    process = marked.popen([*command, "-o", str(file)])
    wait_for_line(process, "run 1 of 2")
    assert eventually(lambda: sending(marked), 90.0)
    (java,) = [one for one in started(marked) if "org.pytorch.serve.ModelServer" in one.cmdline()]
    time.sleep(2.5)
    java.kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    first, again, second = read_study(file).runs
    # Its guardian may have started it anew by then, with other workers.
    assert "After the load" in first.failure or "were replaced" in first.failure, first.failure
    assert first.result is not None and first.result.errors.get("connection")
    assert again.counts and second.counts, (again.failure, second.failure)
    assert [(run.block, run.position) for run in (first, again, second)] == [(0, 0), (0, 1), (1, 0)]
    assert left(marked) == []


def test_an_arm_that_never_gets_ready_is_left_out_with_its_reason(marked):
    file = marked.run_folder / "study.json"
    command = compare(
        marked, marked.archive("broken", BROKEN), "--workers", "1", "--blocks", "4", "--ready-timeout", "30"
    )
    done = marked.call([*command, "-o", str(file)])
    assert done.returncode == 0, done.stderr
    study = read_study(file)
    assert len(study.runs) == 2 and not any(run.counts for run in study.runs)
    assert "the weights are of another model" in study.runs[0].failure + study.runs[0].details
    assert "was left out after 2 failures in a row" in study.incomplete
    assert "was left out" in " ".join(done.stderr.split())
    assert left(marked) == []


def test_arms_with_mps_are_proven_on_a_simulated_gpu(marked_simulated):
    """Workers become clients of a daemon that is there for their run only; those with MPS off become none."""
    here = marked_simulated
    file = here.run_folder / "study.json"
    words = ("--workers", "1", "--batch-sizes", "4", "--blocks", "1", "--json", "-o", str(file))
    done = here.call(compare(here, here.archive("client", CLIENT), *words))
    assert done.returncode == 0, done.stderr
    study = read_study(file)
    assert json.loads(done.stdout) == json.loads(file.read_text())
    clients = {run.arm: (run.clients, run.failure) for run in study.runs}
    assert clients == {"1 worker x 4, MPS off": (0, ""), "1 worker x 4, MPS on": (1, "")}
    assert all(run.samples and run.samples[0].gpu == study.machine["gpus"][0]["uuid"] for run in study.runs)
    assert left(here) == []


BAD = {
    "no payload": (("--archive", "echo.mar"), 3, "No payload is named"),
    "a payload that is missing": (("--archive", "echo.mar", "--payload", "gone.txt"), 3, "gone.txt cannot be read"),
    "an archive that is missing": (("--archive", "gone.mar", "--payload", "p.txt"), 3, "gone.mar"),
    "nothing at all": ((), 2, "Nothing is named to be served"),
    "an unknown workload": (("--workload", "weather"), 2, "There is no workload 'weather'"),
    "both": (("--workload", "text", "--archive", "echo.mar"), 2, "exclude each other"),
    "no blocks": (("--archive", "echo.mar", "--payload", "p.txt", "--blocks", "0"), 2, "no whole number from 1"),
    "all cores": (("--archive", "echo.mar", "--payload", "p.txt", "--generator-cores", "4000"), 3, "leaves no core"),
    "a folder that is gone": (("--archive", "echo.mar", "--payload", "p.txt", "-o", "no/s.json"), 3, "no folder"),
    "a study that is gone": (("--archive", "echo.mar", "--payload", "p.txt", "--resume", "s.json"), 3, "s.json"),
    "two wishes": (("--resume", "s.json", "--force"), 2, "not allowed with"),
}


@pytest.mark.parametrize(("words", "code", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_before_anything_starts(serving, monkeypatch, capsys, words, code, sentence):
    from ts_mps.cli.main import main

    monkeypatch.chdir(serving.run_folder)
    Path("p.txt").write_text("hello")
    serving.archive("echo", ECHO)
    (serving.store / "echo.mar").rename("echo.mar")
    assert main(["bench", "compare", *words]) == code
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not Path("study.json").exists()


def test_a_port_that_is_taken_is_refused(serving, monkeypatch, capsys):
    import socket

    from ts_mps.cli.main import main

    monkeypatch.chdir(serving.run_folder)
    Path("p.txt").write_text("hello")
    serving.archive("echo", ECHO)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        archive = str(serving.store / "echo.mar")
        assert main(["bench", "compare", "--archive", archive, "--payload", "p.txt", "--port", port]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"--port {port}: it is taken by" in said and f"pid {os.getpid()}" in said


def test_a_package_that_is_missing_is_told_with_the_command(monkeypatch, capsys):
    from ts_mps.cli.main import main

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "locust" else real(name))
    assert main(["bench", "compare", "--workload", "text"]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "needs the package locust" in said and "pip install 'ts-mps[bench]'" in said


def test_commands_of_bench(capsys):
    from ts_mps.cli.main import main

    assert main(["bench"]) == 2 and main(["bench", "--help"]) == 0
    assert "compare" in capsys.readouterr().out
    assert main(["bench", "dance"]) == 2
    assert "Commands: compare, report, diff" in capsys.readouterr().err


def test_a_published_study_is_measured_again_on_the_cpu(marked):
    """One cell of `--reproduce`, tiny; then the whole report of its folder."""
    marked.environ["CUDA_VISIBLE_DEVICES"] = ""
    marked.link_checkout()
    part = ("--reproduce", "databricks", "--part", "databricks-tiny-prefill-32", "--tiny", "-o", "out")
    done = marked.ts_mps("bench", "compare", *part)
    assert done.returncode == 0, done.stderr
    file = marked.run_folder / "out" / "databricks-tiny-prefill-32.json"
    study = read_study(file)
    assert study.kind == "databricks" and study.incomplete == ""
    assert [arm.name for arm in sorted(study.arms, key=lambda arm: arm.workers)] == [
        "1 worker x 4, CPU",
        "2 workers x 2, CPU",
    ]
    assert all(run.counts and run.result is not None and not run.result.errors for run in study.runs)
    again = marked.ts_mps("bench", "compare", *part)
    assert again.returncode == 0 and "1 of 1 studies are finished" in again.stderr
    report = marked.ts_mps("bench", "report", str(file), "--price", "gpu=4,cpu=1")
    assert report.returncode == 0 and "What a million requests cost" in report.stdout
    assert left(marked) == []


def test_a_study_of_a_named_workload_is_gone_on_with_although_its_model_is_built_anew(marked):
    """The archive's digest leaves out when it was packed, so the same workload is the same model."""
    file = marked.run_folder / "study.json"
    times = ("--seconds", "1", "--warm-up", "0.5", "--connections", "4", "--no-ceiling", "--workers", "1")
    marked.environ["CUDA_VISIBLE_DEVICES"] = ""
    marked.link_checkout()
    command = marked.command("bench", "compare", "--workload", "ranking-tiny", *times, "--blocks", "2")
    process = marked.popen([*command, "-o", str(file)])
    wait_for_line(process, "run 2 of 2")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    kept = read_study(file)
    assert len(kept.runs) == 1 and len(kept.workload["archive_sha256"]) == 64
    done = marked.call([*command, "--resume", str(file)])
    assert done.returncode == 0, done.stderr
    assert len(read_study(file).runs) == 2 and read_study(file).workload == kept.workload
    assert left(marked) == []

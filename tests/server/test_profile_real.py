"""``ts-mps profile`` with real worker processes on the CPU, and with MPS on a simulated GPU."""

from __future__ import annotations

import json
import os
import signal
import tarfile
import time
from pathlib import Path

import psutil
import pytest
from serving import BROKEN
from support import eventually, mps_processes, simulated_gpu

from ts_mps.plan.profile import Profile
from ts_mps.torchserve.digest import content_digest

#: Sleeps a known time for a batch and refuses what it does not know.
SLEEPY = """
import time

class Sleepy:
    def initialize(self, context):
        self.size = context.system_properties["batch_size"]

    def handle(self, data, context):
        if len(data) > self.size:
            raise RuntimeError("a larger batch than was announced")
        for row in data:
            if row["body"] not in (b"one", b"two"):
                raise ValueError("I know only one and two")
        time.sleep(0.02 + 0.005 * len(data))
        return [b"slept"] * len(data)
"""

#: Runs out of memory from batches of four on, as a handler on a GPU would.
HUNGRY = """
class Hungry:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        if len(data) >= 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [b"fine"] * len(data)
"""

MORTAL = """
import os

class Mortal:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        if len(data) > 1:
            print("that was too much", flush=True)
            os._exit(3)
        return [b"fine"] * len(data)
"""


@pytest.fixture
def bench(serving):
    """A folder with payloads; afterwards no process and no folder of a profile is left."""
    before = set(leftovers())
    serving.environ["OMP_NUM_THREADS"] = "1"
    for name in ("one", "two"):
        (serving.run_folder / name).write_text(name)
    yield serving
    assert eventually(lambda: set(leftovers()) <= before), set(leftovers()) - before


def leftovers() -> list[str]:
    folders = [str(path) for path in Path("/tmp").glob("ts-mps-profile-*")]
    processes = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "ts_mps.profile." in command and process.pid != os.getpid():
            processes.append(f"{process.pid} {command}")
    return folders + processes


def command(bench, archive: str, *more: str) -> list[str]:
    words = ["--payload", "one", "two", "--seconds", "0.3", "--repeats", "2", "--gap-ms", "1", *more]
    return bench.command("profile", str(bench.store / archive), *words)


def written(bench, name: str) -> Profile:
    return Profile.from_json(json.loads((bench.run_folder / name).read_text()))


def test_times_and_scaling_are_the_handlers(bench):
    archive = bench.archive("sleepy", SLEEPY, batchSize=4)
    done = bench.call(command(bench, archive, "--batch-sizes", "1,8", "--workers", "1,2", "--json"))
    assert done.returncode == 0, done.stderr
    profile = written(bench, "sleepy.profile.json")
    assert Profile.from_json(json.loads(done.stdout)) == profile
    assert (profile.model, profile.archive, profile.gpu, profile.sms) == ("sleepy", "sleepy.mar", "CPU", 0)
    assert profile.sha256 == content_digest(bench.store / archive)
    # The archive's own batch size is measured though nobody asked for it.
    assert [run.batch_size for run in profile.runs] == [1, 4, 8]
    for run in profile.runs:
        asleep = 20 + 5 * run.batch_size
        assert asleep <= run.low <= run.milliseconds <= run.high
        assert run.milliseconds < 2 * asleep
        assert run.batches >= 10
        assert (run.gpu_milliseconds, run.context, run.weights, run.peak) == (None, 0, 0, 0)
    assert [(run.workers, run.mps, run.batch_size) for run in profile.scaling] == [(1, False, 4), (2, False, 4)]
    one, two = (run.requests_per_second for run in profile.scaling)
    most = 4 / (0.040 + 0.001)
    assert 0.4 * most < one <= 1.01 * most
    assert 1.3 * one < two <= 2.02 * most
    assert profile.machine["incomplete"] == "" and profile.machine["torch"]
    assert profile.machine["payloads"] == [{"file": "one", "bytes": 3}, {"file": "two", "bytes": 3}]


def test_a_table_for_people(bench):
    archive = bench.archive("sleepy", SLEEPY)
    done = bench.call(command(bench, archive, "--batch-sizes", "2", "--workers", "1", "-o", "out.json"))
    assert done.returncode == 0, done.stderr
    assert "sleepy on CPU" in done.stdout and "ms median [10-90 %]" in done.stdout
    assert "[lowest-highest]" in done.stdout
    assert "The profile is in out.json" in done.stderr
    assert written(bench, "out.json").runs


def test_a_tar_with_its_handler(bench):
    folder = bench.folder / "sleepy"
    (folder / "MAR-INF").mkdir(parents=True)
    (folder / "handler.py").write_text(SLEEPY)
    model = {"modelName": "sleepy", "modelVersion": "1.0", "handler": "handler.py"}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"runtime": "python", "model": model}))
    with tarfile.open(bench.store / "sleepy.tar.gz", "w:gz") as archive:
        archive.add(folder, "sleepy")
    for name in ("sleepy.tar.gz", str(folder)):
        done = bench.call(command(bench, name, "--batch-sizes", "1", "--workers", "none", "-o", "out.json"))
        assert done.returncode == 0, done.stderr
        profile = written(bench, "out.json")
        assert len(profile.runs) == 1 and profile.scaling == ()


def test_a_payload_that_the_handler_refuses_shows_why(bench):
    archive = bench.archive("sleepy", SLEEPY)
    (bench.run_folder / "three").write_text("three")
    done = bench.call([*command(bench, archive), "--payload", "three"])
    assert done.returncode == 1
    assert "answered a request with 503" in done.stderr
    assert "I know only one and two" in done.stderr
    assert not list(bench.run_folder.glob("*.json"))


def test_a_worker_that_does_not_load_shows_its_traceback(bench):
    done = bench.call(command(bench, bench.archive("broken", BROKEN)))
    assert done.returncode == 6
    assert "did not load (batch size 1): ValueError: the weights are of another model" in done.stderr
    assert "in initialize" in done.stderr


def test_out_of_memory_ends_the_series_and_is_said(bench):
    archive = bench.archive("hungry", HUNGRY)
    done = bench.call(command(bench, archive, "--batch-sizes", "1,2,4,8", "--workers", "1", "-o", "out.json"))
    assert done.returncode == 0, done.stderr
    profile = written(bench, "out.json")
    assert [run.batch_size for run in profile.runs] == [1, 2]
    assert [run.workers for run in profile.scaling] == [1]
    assert "Batch size 4 and larger are left out" in done.stderr
    assert "Batch size 4 and larger" in profile.machine["notes"][0]


def test_a_worker_that_dies_leaves_what_was_measured(bench):
    archive = bench.archive("mortal", MORTAL)
    done = bench.call(command(bench, archive, "--batch-sizes", "1,2", "-o", "out.json"))
    assert done.returncode == 1
    assert "A worker of model mortal ended while it ran batches of 2" in done.stderr
    assert "that was too much" in done.stderr
    profile = written(bench, "out.json")
    assert [run.batch_size for run in profile.runs] == [1]
    assert profile.machine["incomplete"].startswith("It was broken off: A worker of model mortal ended")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupt_leaves_nothing_but_what_was_measured(bench, number, code):
    archive = bench.archive("sleepy", SLEEPY)
    process = bench.popen(command(bench, archive, "--batch-sizes", "1,2", "--seconds", "2", "-o", "out.json"))
    assert process.stdout is not None
    for line in process.stdout:
        if "1 worker(s)" in line:
            break
    time.sleep(1.5)
    process.send_signal(number)
    rest = process.stdout.read()
    assert process.wait(60) == code, rest
    assert "marked as incomplete" in rest
    profile = written(bench, "out.json")
    assert [run.batch_size for run in profile.runs] == [1, 2]
    assert profile.machine["incomplete"] == "It was interrupted."


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--mps", "on"], 5, "there is no usable GPU"),
        (["--gpu", "3"], 3, "this machine has no such GPU"),
        (["--payload", "nothing"], 3, "The payload nothing cannot be read"),
        (["-o", "missing/out.json"], 3, "cannot be written to missing/out.json"),
        (["--batch-sizes", "0,1"], 2, "'0' is no whole number from 1 to 65,536"),
        (["--batch-sizes", "none"], 2, "'none' is no whole number from 1 to 65,536"),
        (["--batch-sizes", "1,999999999"], 2, "'999999999' is no whole number from 1 to 65,536"),
        (["--workers", "1000000"], 2, "'1000000' is no whole number from 1 to 128"),
        (["--percentages", "120"], 2, "120 is not above 0 and up to 100"),
        (["--percentages", "-5"], 2, "-5 is not above 0 and up to 100"),
        (["--seconds", "nan"], 2, "'nan' is no number"),
        (["--gap-ms=-1"], 2, "-1 is not from 0 to 60000"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_starts(bench, words, code, sentence):
    done = bench.call([*command(bench, bench.archive("sleepy", SLEEPY)), *words], CUDA_VISIBLE_DEVICES="")
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "loading once" not in done.stderr


@pytest.mark.parametrize(
    ("config", "sentence"),
    [({"parallelType": "tp"}, "parallelType"), ({"asyncCommunication": True}, "asyncCommunication")],
)
def test_models_that_torchserve_drives_otherwise_are_refused(bench, config, sentence):
    done = bench.call(command(bench, bench.archive("other", SLEEPY, **config)))
    assert done.returncode == 3
    assert sentence in done.stderr


def test_no_payload_is_said(bench):
    done = bench.ts_mps("profile", str(bench.store / bench.archive("sleepy", SLEEPY)))
    assert done.returncode == 3
    assert "--payload" in done.stderr


#: In a worker of a profile, before torch: CUDA's calls do nothing, and a context makes the process a simulated client.
PRETEND_CUDA = """
import os, sys
if "ts_mps.profile.worker" in " ".join(sys.orig_argv):
    import torch
    from pathlib import Path
    from types import SimpleNamespace

    def zeros(*size, device=None, **more):
        folder = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
        if (folder / "control").exists() or (folder / "nvidia-cuda-mps-control.pid").exists():
            clients = folder / "sim-clients"
            clients.mkdir(exist_ok=True)
            (clients / str(os.getpid())).touch()

    torch.zeros = zeros
    torch.cuda.synchronize = lambda *a: None

    def properties(index):
        share = float(os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", 100))
        return SimpleNamespace(multi_processor_count=int(1.32 * share))

    torch.cuda.get_device_properties = properties
    from ts_mps.torchserve import numerics
    numerics.check = lambda gpu, percentage: 0.1
"""


@pytest.fixture
def pretended(simulated):
    """A bench on a simulated GPU that nobody uses, in workers that take its CUDA calls for real."""
    folder = simulated.folder / "pretend"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(PRETEND_CUDA)
    free = {"memory_free": simulated_gpu()["memory_total"]}
    simulated.environ["SIM_GPUS"] = json.dumps([simulated_gpu(0, **free)])
    simulated.environ["PYTHONPATH"] = f"{folder}:{simulated.environ['PYTHONPATH']}"
    simulated.environ["OMP_NUM_THREADS"] = "1"
    for name in ("one", "two"):
        (simulated.run_folder / name).write_text(name)
    before = set(leftovers())
    yield simulated
    assert eventually(lambda: set(leftovers()) == before)
    assert mps_processes(Path("/tmp/ts-mps-profile-")) == []


def test_under_mps_shares_and_both_ways_are_measured(pretended):
    archive = pretended.archive("sleepy", SLEEPY, batchSize=2)
    more = ("--batch-sizes", "1", "--workers", "2,49", "--percentages", "100,50", "--mps", "on")
    done = pretended.call(command(pretended, archive, *more))
    assert done.returncode == 0, done.stderr
    profile = written(pretended, "sleepy.profile.json")
    assert (profile.gpu, profile.sms) == ("NVIDIA H200", 132)
    shares = [(run.batch_size, run.percentage, run.sms) for run in profile.runs]
    assert shares == [(1, None, 132), (2, None, 132), (2, 50.0, 66)]
    assert [(run.workers, run.mps) for run in profile.scaling][-1] == (2, True)
    assert "49 workers and more with MPS on are left out: the MPS server of this GPU takes 48 clients" in done.stderr
    assert profile.machine["mps"] is True and profile.machine["mps_control"] == 13000


def test_a_gpu_that_others_use_is_refused(pretended):
    pretended.environ["SIM_GPUS"] = json.dumps([simulated_gpu()])
    archive = pretended.archive("sleepy", SLEEPY)
    refused = pretended.call(command(pretended, archive))
    assert refused.returncode == 3
    assert "603 MiB in use by processes that cannot be seen from here" in refused.stderr
    more = ("--batch-sizes", "1", "--workers", "none", "--percentages", "none", "--shared-gpu")
    done = pretended.call(command(pretended, archive, *more))
    assert done.returncode == 0, done.stderr
    assert "times and memory may be wrong" in done.stderr

"""``ts-mps profile`` of a text classifier on a real GPU: memory, times, shares, several workers, and nothing left."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
from handling import build_module
from serving import Serving
from support import eventually, mps_processes

from ts_mps.gpu.inventory import read_inventory
from ts_mps.plan.profile import BatchRun, Profile

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(580)]

MIB = 2**20


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text classifier of handlers/ with the tiny model."""
    store = tmp_path_factory.mktemp("store")
    build_module("archive").main(
        "text_classifier", {"tiny": build_module("text_classifier").tiny}, ["--store", str(store)]
    )
    return store / "text_classifier.mar"


@pytest.fixture
def bench(serving: Serving):
    """A folder with a payload; afterwards no process, daemon or folder of a profile is left."""
    (serving.run_folder / "text.json").write_text(json.dumps({"text": "the film was not very good"}))
    before = set(Path("/tmp").glob("ts-mps-profile-*"))
    yield serving
    assert eventually(lambda: not [p for p in psutil.process_iter(["cmdline"]) if is_ours(p)], 20)
    assert mps_processes(Path("/tmp/ts-mps-profile-")) == []
    assert set(Path("/tmp").glob("ts-mps-profile-*")) == before


def is_ours(process: psutil.Process) -> bool:
    return any(word.startswith("ts_mps.profile.") for word in process.info["cmdline"] or ())


def profile(bench: Serving, archive: Path, *more: str) -> Profile:
    words = ("profile", str(archive), "--payload", "text.json", "--seconds", "1", "--repeats", "2", "-o", "out.json")
    done = bench.ts_mps(*words, *more, CUDA_VISIBLE_DEVICES=read_inventory().gpus[0].uuid)
    assert done.returncode == 0, done.stderr
    return Profile.from_json(json.loads((bench.run_folder / "out.json").read_text()))


def check_run(run: BatchRun) -> None:
    # A CUDA context takes 519 MiB on an H200 with driver 580; other GPUs differ, none is below this.
    assert 300 * MIB < run.context < 2000 * MIB
    assert 0 <= run.weights < 4000 * MIB and 0 <= run.peak < 4000 * MIB
    assert 0 < run.low <= run.milliseconds <= run.high < 1000
    assert run.batches >= 10
    if run.gpu_milliseconds is not None:
        # Traced in batches of their own, of which a few may have been slower than the median.
        assert 0 < run.gpu_milliseconds < 2 * run.milliseconds


def test_one_worker_its_shares_and_several(bench, archive, capsys):
    found = profile(bench, archive, "--batch-sizes", "1,8", "--workers", "1,4", "--percentages", "50")
    gpu = read_inventory().gpus[0]
    assert found.gpu == gpu.name and found.sms > 0
    assert found.machine["incomplete"] == "" and found.machine["cuda"]
    assert [(run.batch_size, run.percentage) for run in found.runs] == [(1, None), (8, None), (8, 50.0)]
    for run in found.runs:
        check_run(run)
    whole, half = found.runs[1], found.runs[2]
    assert whole.sms == found.sms
    assert 0.4 * whole.sms <= half.sms <= 0.6 * whole.sms
    assert any(run.gpu_milliseconds is not None for run in found.runs), found.machine["notes"]
    # Two sizes of the same model have the same context.
    assert abs(found.runs[0].context - whole.context) < 32 * MIB
    assert [(run.workers, run.mps) for run in found.scaling] == [(1, False), (4, False), (1, True), (4, True)]
    rate = {(run.workers, run.mps): run.requests_per_second for run in found.scaling}
    assert rate[4, True] > rate[1, True]
    with capsys.disabled():
        print(f"\n{found.gpu}: context {whole.context / MIB:.0f} MiB, {found.scaling}, notes {found.machine['notes']}")


def test_without_mps(bench, archive):
    found = profile(bench, archive, "--mps", "off", "--batch-sizes", "8", "--workers", "2")
    (run,) = found.runs
    check_run(run)
    assert (run.percentage, run.sms) == (None, found.sms)
    assert [(scale.workers, scale.mps) for scale in found.scaling] == [(2, False)]

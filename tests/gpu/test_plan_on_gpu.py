"""Plans on a real GPU: models are profiled, planned and served, and what the plan predicted is measured."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from handling import HANDLERS
from serving import Serving
from support import mps_processes

from ts_mps.gpu.inventory import read_inventory
from ts_mps.plan.facts import SERVER_BYTES
from ts_mps.plan.model import Plan
from ts_mps.plan.profile import Profile
from ts_mps.profile.memory import GpuMemory

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import bodies
from closed_loop import Burst, burst
from connection import Target
from rows import ROWS, Row

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

MIB = 2**20

#: What the benchmark serves, by model: batches of 8, 8, 4 and 32.
SERVED = {row.model: row for row in ROWS if row.number in (2, 4, 5, 6)}
TRIO = ("text_classifier", "image_classifier", "ranker")

#: Clients are other machines: what stands for them here gets cores of its own, as many as leave a server enough.
CORES = sorted(os.sched_getaffinity(0))[:16]
CLIENT_CORES = set(CORES[: max(1, len(CORES) // 4)])
SERVER_CORES = set(CORES) - CLIENT_CORES or CLIENT_CORES

LOADED_SECONDS, WARM_SECONDS = 9.0, 3.0

#: Says on which GPU it is, as CUDA sees it.
WHERE = """
import json, os, torch

class Where:
    def initialize(self, context):
        self.held = torch.ones(1, device=f"cuda:{context.system_properties['gpu_id']}")

    def handle(self, data, context):
        return [json.dumps([os.getpid(), str(torch.cuda.get_device_properties(0).uuid)])] * len(data)
"""


@dataclass(frozen=True)
class Measured:
    """A model in the store, what clients send to it, and its profile."""

    row: Row
    sent: list[bytes]
    content_type: str
    profile: Path

    def read(self) -> Profile:
        return Profile.from_json(json.loads(self.profile.read_text()))


class Bench:
    """Models that are built and profiled when they are first asked for."""

    def __init__(self, folder: Path, results: Path) -> None:
        self.store = folder / "store"
        self._models = folder / "models"
        self._results = results
        self._measured: dict[str, Measured] = {}

    def measured(self, serving: Serving, name: str) -> Measured:
        if name not in self._measured:
            self._measured[name] = self._measure(serving, SERVED[name])
        return self._measured[name]

    def _measure(self, serving: Serving, row: Row) -> Measured:
        weights = self._models / row.model
        self.store.mkdir(exist_ok=True)
        weights.parent.mkdir(exist_ok=True)
        settings = [f"batchSize={row.batch}", "maxBatchDelay=5", "startupTimeout=300", *row.settings]
        script = str(HANDLERS / "build" / f"{row.model}.py")
        store = ("--store", str(self.store), "--format", "no-archive", "--keep-model", str(weights))
        built = serving.call(
            [sys.executable, script, *store, "--preset", row.preset]
            + [word for setting in settings for word in ("--set", setting)]
        )
        assert built.returncode == 0, built.stderr
        sent, content_type = bodies.make(row.input, weights)
        files = [self._results / f"{row.model}-{number}" for number in range(len(sent))]
        for file, body in zip(files, sent, strict=True):
            file.write_bytes(body)
        profile = self._results / f"{row.model}.profile.json"
        known = Path(os.environ.get("TS_MPS_TEST_PROFILES", ""), profile.name)
        if known.is_file():  # of the same archive, as the plan checks
            shutil.copy(known, profile)
            return Measured(row, sent, content_type, profile)
        serving.timeout = 500
        done = serving.ts_mps(
            "profile", str(self.store / row.model), "--payload", *map(str, files), "--content-type", content_type,
            "--batch-sizes", str(row.batch), "--workers", "1,4", "--percentages", "50",
            "--seconds", "1", "--repeats", "2", "-o", str(profile),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        print(done.stdout)
        return Measured(row, sent, content_type, profile)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="ts-mps-models-"))
    yield Bench(folder, tmp_path_factory.mktemp("profiles"))
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def cores() -> Iterator[None]:
    """Profiles and servers on the same cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, SERVER_CORES)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def planned(serving: Serving) -> Iterator[Serving]:
    """Serving on one GPU; a stop leaves nothing."""
    serving.environ["CUDA_VISIBLE_DEVICES"] = read_inventory().gpus[0].uuid
    serving.config = serving.write_config(
        job_queue_size=10000, max_request_size=20000000, disable_token_authorization="true"
    )
    yield serving
    stop(serving)


def stop(serving: Serving) -> None:
    stopped = serving.ts_mps("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert serving.left() == [] and mps_processes(serving.folder) == []


def cpu_seconds(serving: Serving) -> Counter[str]:
    """Time of host cores so far, of TorchServe's frontend and of workers."""
    seconds: Counter[str] = Counter(java=0.0, python=0.0)
    for process in serving.processes():
        times = process.cpu_times()
        seconds["java" if process.name() == "java" else "python"] += times.user + times.system
    return seconds


def load(serving: Serving, models: list[Measured], plan: Plan) -> dict[str, Burst]:
    """All models at once, each with enough connections that a full batch always waits."""
    workers = {model.name: model.workers for model in plan.models}
    state = serving.state()
    assert state is not None
    where = state.endpoints.inference
    clients = partial(os.sched_setaffinity, 0, CLIENT_CORES)
    with ProcessPoolExecutor(len(models), get_context("spawn"), clients) as pool:
        list(pool.map(abs, range(len(models))))  # all processes are there before the first burst begins
        futures = {
            model.row.model: pool.submit(
                burst,
                Target(where.host, where.port, f"/predictions/{model.row.model}", model.sent, model.content_type),
                processes=2,
                connections=workers[model.row.model] * model.row.batch * 4,
                seconds=LOADED_SECONDS - WARM_SECONDS,
                warm_up=WARM_SECONDS,
            )
            for model in models
        }
        return {name: future.result() for name, future in futures.items()}


def check_prediction(serving: Serving, bench: Bench, names: tuple[str, ...], mps: str = "auto") -> None:
    """Memory within 10 % and throughput of all models together within 20 % of what the plan said; of each, 35 %."""
    models = [bench.measured(serving, name) for name in names]
    serving.store = bench.store
    settings = f'[plan]\nmps = "{mps}"\n'
    for model in models:
        settings += f'[models.{model.row.model}]\nworkers = "auto"\nprofile = "{model.profile}"\n'
    with GpuMemory(read_inventory().gpus[0].uuid) as memory:
        before = memory.settled()
        plan = serving.start_planned(settings, *names)
        status = serving.status()
        assert status.as_planned, status.problems
        busy = cpu_seconds(serving)
        with memory.peak() as peak:
            bursts = load(serving, models, plan)
        held = peak.bytes - before
        took = {name: seconds - busy[name] for name, seconds in cpu_seconds(serving).items()}
    predicted = sum(gpu.memory_planned for gpu in plan.gpus) + (SERVER_BYTES if plan.mps else 0)
    print(f"memory: {predicted / MIB:,.0f} MiB predicted, {held / MIB:,.0f} measured: {predicted / held:.2f}")
    answered = sum(seen.requests_per_s for seen in bursts.values()) * LOADED_SECONDS
    each = {name: f"{1000 * seconds / answered:.3f}" for name, seconds in took.items()}
    print(f"CPU ms of a request, about: {each}; cores busy: {sum(took.values()) / LOADED_SECONDS:.1f}")
    ratios = {}
    for model in plan.models:
        seen = bursts[model.name]
        assert seen.errors == {}, seen.first_error
        assert model.requests_per_second is not None
        ratios[model.name] = model.requests_per_second / seen.requests_per_s
        print(
            f"{model.name}, {model.workers} workers: {model.requests_per_second:,.0f}/s predicted, "
            f"{seen.requests_per_s:,.0f} measured: {ratios[model.name]:.2f}"
        )
    assert 0.9 <= predicted / held <= 1.1
    together = sum(model.requests_per_second or 0.0 for model in plan.models)
    assert 0.8 <= together / sum(seen.requests_per_s for seen in bursts.values()) <= 1.2
    assert all(0.65 <= ratio <= 1.35 for ratio in ratios.values()), ratios


@pytest.mark.parametrize("name", TRIO)
def test_one_model_does_what_its_plan_says(planned: Serving, bench: Bench, name: str, capsys) -> None:
    with capsys.disabled():
        check_prediction(planned, bench, (name,))


@pytest.mark.parametrize("mps", ["on", "off"])
def test_three_models_side_by_side_do_what_their_plan_says(planned: Serving, bench: Bench, mps: str, capsys) -> None:
    """Both ways, as the planner compares what it predicts of both."""
    with capsys.disabled():
        check_prediction(planned, bench, TRIO, mps)


@pytest.mark.parametrize("name", list(SERVED))
def test_profile_of_every_handler(serving: Serving, bench: Bench, name: str) -> None:
    found = bench.measured(serving, name).read()
    assert found.gpu == read_inventory().gpus[0].name
    batch = SERVED[name].batch
    for run in found.runs:
        assert 0 < run.low <= run.milliseconds <= run.high
        assert run.gpu_milliseconds is not None and 0 < run.gpu_milliseconds < 1.5 * run.milliseconds
        assert run.context > 0 and run.weights > 0
    assert [(run.batch_size, run.percentage) for run in found.runs] == [(batch, None), (batch, 50.0)]
    assert [(run.workers, run.mps) for run in found.scaling] == [(1, False), (4, False), (1, True), (4, True)]


@pytest.mark.parametrize("number", [1, 2, 4])
def test_workers_are_on_the_gpus_of_their_plan(serving: Serving, number: int, capsys) -> None:
    """By number, on named GPUs, and by TorchServe's own deviceIds."""
    gpus = read_inventory().gpus[:number]
    if len(gpus) < number:
        pytest.skip(f"needs {number} GPUs, this machine has {len(gpus)}")
    serving.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in gpus)
    asked = {"anywhere": 2 * number, "last": 2, "ids": 2}
    serving.archive("anywhere", WHERE)
    serving.archive("last", WHERE)
    serving.archive("ids", WHERE, workers=asked["ids"], deviceIds=[number - 1, 0])
    settings = f"""
        [models.anywhere]
        workers = {asked["anywhere"]}
        [models.last]
        workers = {asked["last"]}
        gpus = ["{gpus[-1].uuid}"]
        """
    with capsys.disabled():
        plan = serving.start_planned(settings, *(f"{name}.mar" for name in asked))
    try:
        status = serving.status()
        assert status.as_planned, status.problems
        seen = {}
        for name, count in asked.items():
            workers = {worker.pid for worker in status.workers if worker.model == name}
            assert len(workers) == count
            for _ in range(50 * count):
                pid, uuid = json.loads(serving.api().predict(name, b"x"))
                seen[pid] = (name, f"GPU-{uuid}")
                if workers <= seen.keys():
                    break
        wanted = Counter((slot.model, slot.gpu) for slot in plan.slots)
        assert Counter(seen.values()) == wanted
        assert {gpu for model, gpu in wanted if model == "anywhere"} == {gpu.uuid for gpu in gpus}
        assert {gpu for model, gpu in wanted if model == "last"} == {gpus[-1].uuid}
        assert wanted["ids", gpus[-1].uuid] == wanted["ids", gpus[0].uuid] == (1 if number > 1 else 2)
        with capsys.disabled():
            print(f"\n{number} GPU(s): {dict(wanted)}")
    finally:
        stop(serving)

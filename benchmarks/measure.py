"""One row: both archives of the same weights in one server, their answers compared, then bursts by turns."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bodies
from agreement import Agreement, compare
from ceiling import bare
from closed_loop import Burst, burst
from connection import Target
from figures import extent, middle, middle_stages, ratios, stages
from machine import usable_cores
from rows import Row
from server import REPOSITORY, Failed, Server

_NAIVE = REPOSITORY / "benchmarks" / "naive"
#: How long TorchServe waits for a batch to fill, in milliseconds.
_MAX_BATCH_DELAY = 5
_WARM_UP_S = 1.5
#: Bodies whose answers are compared before anything is measured.
_COMPARED = 32


@dataclass(frozen=True)
class Method:
    """How every row is measured.

    Args:
        work: Folder for models and archives.
        seconds: Counted time of a burst.
        repeats: Counted bursts of each side.
        processes: Processes that make the load.
        cpu: Whether to do without a GPU.
    """

    work: Path
    seconds: float
    repeats: int
    processes: int
    cpu: bool


def measure(row: Row, method: Method, found: dict[str, Any]) -> None:
    """Measure one row and leave nothing behind.

    Args:
        row: The row.
        method: How.
        found: What there is to say of the row, ready for JSON, is put there as soon as it is known, so that a row that
            fails keeps what it had.

    Raises:
        Failed: The row cannot be measured.
    """
    # As many threads as the workers of one side would get without the other side, which is idle.
    threads = max(1, usable_cores() // row.workers)
    found.update(omp_threads=threads, load_processes=method.processes)
    server = Server(method.work / f"row-{row.number}", threads)
    try:
        folder = _build(row, server, method.work)
        models = ["ours=ours", "naive=naive"]
        if row.ceiling:
            models.append("noop=" + server.archive("noop", _NAIVE / "noop.py", _torchserve(row)))
        server.start(row.mps, models)
        _Measurement(row, method, server, folder, found).run()
    except Exception:
        found["logs"] = server.logs()
        print(found["logs"], end="\n" if found["logs"] else "", file=sys.stderr, flush=True)
        raise
    finally:
        server.end()


def _build(row: Row, server: Server, work: Path) -> Path:
    """Both archives of the same weights; the model's folder."""
    folder = work / "models" / f"{row.model}-{row.preset}"
    settings = [f"{key}={value}" for key, value in _torchserve(row).items()] + list(row.settings)
    arguments = [word for setting in settings for word in ("--set", setting)]
    if folder.is_dir():
        model = ["--model", str(folder)]
    else:
        # A folder that is there is whole: it gets its name once it is written.
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        model = ["--preset", row.preset, "--keep-model", str(part)]
    server.build(row.model, ["--name", "ours", *model, *arguments])
    if not folder.is_dir():
        part.rename(folder)
    naive = str(_NAIVE / f"{row.model}.py")
    server.build(row.model, ["--name", "naive", "--model", str(folder), "--handler", naive, *arguments])
    return folder


def _torchserve(row: Row) -> dict[str, object]:
    return {
        "minWorkers": row.workers,
        "maxWorkers": row.workers,
        "batchSize": row.batch,
        "maxBatchDelay": _MAX_BATCH_DELAY,
        "startupTimeout": 500,
    }


class _Measurement:
    """The bursts of one row, while its server runs."""

    def __init__(self, row: Row, method: Method, server: Server, folder: Path, found: dict[str, Any]) -> None:
        self.row, self.method, self.server, self.folder, self.found = row, method, server, folder, found
        sent, content_type = bodies.make(row.input, folder)
        self.sent, self.content_type = sent, content_type
        self.host, self.port = server.address()
        self.stages: list[dict[str, float]] = []
        self.bursts: dict[str, list[Burst]] = {}

    def run(self) -> None:
        """Compare the answers, then measure everything."""
        found, repeats = self.found, self.method.repeats
        found["mean_body_bytes"] = round(statistics.mean(map(len, self.sent)))
        found["agreement"] = asdict(self._agreement())
        # A first burst of each that is not counted: the first ones after a start are slow.
        for name in ("naive", "ours", *(["noop"] if self.row.ceiling else [])):
            self._burst(name)
        found["first_bursts"], self.bursts, self.stages = found.pop("bursts"), {}, []
        for repeat in range(repeats):
            for name in ("naive", "ours") if repeat % 2 else ("ours", "naive"):
                self._burst(name)
        if self.row.ceiling:
            for _ in range(repeats):
                self._burst("noop")
        if self.stages:
            found["stages_ms"] = middle_stages(self.stages)
        found["median"] = {name: middle(many) for name, many in self.bursts.items()}
        naive, ours = found["median"]["naive"], found["median"]["ours"]
        if not naive["least_per_s"] or not ours["least_per_s"]:
            firsts = [one.first_error for many in self.bursts.values() for one in many if one.first_error]
            slowest = f"naive {naive['least_per_s']:.1f}, ours {ours['least_per_s']:.1f} requests/s"
            raise Failed(f"a burst answered nothing, try more --seconds: {slowest}; {firsts[:2]}")
        found.update(ratios(naive, ours))
        if self.row.ceiling:
            self._bare()

    def _burst(self, name: str) -> None:
        row, method = self.row, self.method
        target = Target(self.host, self.port, f"/predictions/{name}", self.sent, self.content_type)
        before = self.server.batch_counters(name)
        seen = burst(
            target,
            processes=method.processes,
            connections=row.connections,
            seconds=method.seconds * row.stretch,
            warm_up=_WARM_UP_S * row.stretch,
        )
        self.bursts.setdefault(name, []).append(seen)
        if before:
            self.stages.append(stages(before, self.server.batch_counters(name), row.workers, seen.requests_per_s))
        self.found["bursts"] = {name: [asdict(one) for one in many] for name, many in self.bursts.items()}

    def _agreement(self) -> Agreement:
        """Send the same bodies to both sides, as many at a time as make batches of the size that is measured."""
        api, sent = self.server.state.endpoints.api(timeout=120), self.sent[:_COMPARED]

        def answers(name: str) -> Sequence[bytes]:
            with ThreadPoolExecutor(min(len(sent), self.row.connections)) as pool:
                return list(pool.map(lambda body: api.predict(name, body, self.content_type), sent))

        config = self.folder / "config.json"
        labels = json.loads(config.read_text()).get("id2label") or {} if config.is_file() else {}
        return compare(answers("ours"), answers("naive"), {int(index): str(label) for index, label in labels.items()})

    def _bare(self) -> None:
        """The bare loop; its failure does not spoil the row."""
        runs: list[dict[str, Any]] = []
        try:
            for _ in range(self.method.repeats):
                runs.append(bare(self.server, self.folder, self.row, self.method.seconds, cpu=self.method.cpu))  # noqa: PERF401  # those before a failure count
        except Failed as error:
            self.found["bare_error"] = str(error)
            print(f"row {self.row.number}: bare loop: {error}", file=sys.stderr, flush=True)
        if runs:
            rates = [one["sequences_per_s"] for one in runs]
            self.found["bare"] = runs
            self.found["median"]["bare"] = {"requests_per_s": statistics.median(rates), **extent(rates)}

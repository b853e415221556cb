"""Our handlers against the naive ones: both loaded in one server, measured by turns. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # ts_mps, where it is not installed

import bodies
from agreement import compare
from closed_loop import Burst, Target, burst
from rows import ROWS, Row
from server import REPOSITORY, Failed, Server

_NAIVE = REPOSITORY / "benchmarks" / "naive"
#: How long TorchServe waits for a batch to fill, in milliseconds.
_MAX_BATCH_DELAY = 5
_WARM_UP_S = 1.5
#: Bodies whose answers are compared before anything is measured.
_COMPARED = 32
_BARE_S = 400


class Bench:
    """The rows of one run and where they are written.

    Args:
        options: The command line's.
        work: Folder for models and archives.
    """

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.processes = max(1, min(4, (os.cpu_count() or 1) // 4))
        self.rows: list[dict[str, Any]] = []

    def run(self, rows: Sequence[Row]) -> bool:
        """Measure every row; whether all of them could be, with equal answers."""
        settings = {name: str(value) for name, value in vars(self.options).items()}
        for row in rows:
            began = time.monotonic()
            found: dict[str, Any] = {"row": asdict(row), "connections": row.connections}
            self.rows.append(found)
            try:
                self._row(row, found)
            except Exception as error:
                found["error"] = str(error) if isinstance(error, Failed) else traceback.format_exc()
            found["took_s"] = round(time.monotonic() - began, 1)
            print(line(found), flush=True)
            if self.options.out:
                document = {"machine": machine(), "settings": settings, "rows": self.rows}
                self.options.out.parent.mkdir(parents=True, exist_ok=True)
                self.options.out.write_text(json.dumps(document, indent=1))
        return all(
            "error" not in found
            and found["agreement"]["fine"]
            and not any(middle.get("errors") for middle in found["median"].values())
            for found in self.rows
        )

    def _row(self, row: Row, found: dict[str, Any]) -> None:
        # As many threads as the workers of one side would get without the other side, which is idle.
        server = Server(self.work / f"row-{row.number}", max(1, (os.cpu_count() or 1) // row.workers))
        try:
            try:
                folder = self._build(row, server)
                models = ["ours=ours", "naive=naive"]
                if row.ceiling:
                    models.append("noop=" + server.archive("noop", _NAIVE / "noop.py", _torchserve(row)))
                server.start(row.mps, models)
                self._measure(row, server, folder, found)
            except Exception as error:
                found["logs"] = server.logs()
                print(found["logs"], end="\n" if found["logs"] else "", file=sys.stderr, flush=True)
                raise error
        finally:
            left = server.stop()
            if left:
                print(f"row {row.number}: ts-mps stop: {left}", file=sys.stderr, flush=True)
            server.remove()

    def _build(self, row: Row, server: Server) -> Path:
        """Both archives of the same weights; the model's folder."""
        folder = self.work / "models" / f"{row.model}-{row.preset}"
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

    def _measure(self, row: Row, server: Server, folder: Path, found: dict[str, Any]) -> None:
        sent, content_type = bodies.make(row.input, folder)
        host, port = server.address()
        found["mean_body_bytes"] = round(statistics.mean(map(len, sent)))
        found["agreement"] = asdict(self._agreement(server, sent[:_COMPARED], content_type, folder))
        seconds = self.options.seconds * row.stretch
        bursts: dict[str, list[Burst]] = {}

        def measure(name: str) -> None:
            target = Target(host, port, f"/predictions/{name}", sent, content_type)
            warm_up = _WARM_UP_S * row.stretch
            before = server.batch_counters(name)
            seen = burst(
                target, processes=self.processes, connections=row.connections, seconds=seconds, warm_up=warm_up
            )
            bursts.setdefault(name, []).append(seen)
            if before:
                found["stages_ms"] = _stages(before, server.batch_counters(name), row.workers, seen.requests_per_s)
            found["bursts"] = {name: [asdict(one) for one in many] for name, many in bursts.items()}

        for name in ("naive", "ours"):  # a first burst that is not counted: the first ones after a start are slow
            measure(name)
        bursts.clear()
        for repeat in range(self.options.repeats):
            for name in ("naive", "ours") if repeat % 2 else ("ours", "naive"):
                measure(name)
        if row.ceiling:
            for _ in range(self.options.repeats):
                measure("noop")
        found["median"] = {name: _median(many) for name, many in bursts.items()}
        naive, ours = (found["median"][name]["requests_per_s"] for name in ("naive", "ours"))
        if not naive or not ours:
            firsts = [one.first_error for many in bursts.values() for one in many if one.first_error]
            raise Failed(f"nothing was answered: naive {naive:.1f}, ours {ours:.1f} requests/s; {firsts[:2]}")
        found["ratio"] = ours / naive
        if row.ceiling:
            self._bare(row, server, folder, found)

    def _agreement(self, server: Server, sent: Sequence[bytes], content_type: str, folder: Path) -> Any:
        """Send the same bodies to both sides, several at a time so that they come in batches."""
        api = server.state.endpoints.api(timeout=120)
        with ThreadPoolExecutor(8) as pool:
            ours, naive = (
                list(pool.map(lambda body, name=name: api.predict(name, body, content_type), sent))
                for name in ("ours", "naive")
            )
        config = folder / "config.json"
        labels = json.loads(config.read_text()).get("id2label") or {} if config.is_file() else {}
        return compare(ours, naive, {int(index): str(label) for index, label in labels.items()})

    def _bare(self, row: Row, server: Server, folder: Path, found: dict[str, Any]) -> None:
        """The bare loop beside the idle server, under the same daemon; its failure does not spoil the row."""
        command = [sys.executable, str(REPOSITORY / "benchmarks" / "bare.py"), "--model", str(folder)]
        command += ["--processes", str(row.workers), "--batch", str(row.batch), "--seconds", str(self.options.seconds)]
        runs = []
        for _ in range(self.options.repeats):
            try:
                done = subprocess.run(
                    [*command, *(["--cpu"] if self.options.cpu else [])],
                    env=server.client_environ(), capture_output=True, text=True, timeout=_BARE_S, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                found["bare_error"] = f"not done in {_BARE_S} s"
                break
            if done.returncode:
                found["bare_error"] = done.stderr[-3000:]
                break
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        if runs:
            found["bare"] = runs
            found["median"]["bare"] = {"requests_per_s": statistics.median(one["sequences_per_s"] for one in runs)}
        else:
            print(f"row {row.number}: bare loop: {found['bare_error']}", file=sys.stderr, flush=True)


def _torchserve(row: Row) -> dict[str, object]:
    return {
        "minWorkers": row.workers,
        "maxWorkers": row.workers,
        "batchSize": row.batch,
        "maxBatchDelay": _MAX_BATCH_DELAY,
        "startupTimeout": 500,
    }


def _stages(before: dict[str, float], after: dict[str, float], workers: int, requests_per_s: float) -> dict[str, float]:
    """What one run of a worker was spent on, in milliseconds, and its requests, between two looks at the counters.

    ``torchserve`` is what is left of a worker's time: reading, sending and waiting. The handler's own idle time would
    count the pauses between bursts.
    """
    spent = {name: after[name] - before[name] for name in after if name in before}
    runs = spent["BatchRuns"] or 1.0
    names = {"decode": "BatchDecodeTime", "run": "BatchRunTime", "encode": "BatchEncodeTime"}
    stages = {name: spent[counter] / runs for name, counter in names.items()}
    requests = spent["BatchRequests"] / runs
    whole = 1e3 * workers * requests / requests_per_s if requests_per_s else 0.0
    return {**stages, "torchserve": whole - sum(stages.values()), "requests": requests}


def _median(many: Sequence[Burst]) -> dict[str, float]:
    names = ("requests_per_s", "p50_ms", "p90_ms", "p99_ms")
    found = {name: statistics.median(getattr(one, name) for one in many) for name in names}
    return {**found, "errors": sum(sum(one.errors.values()) for one in many)}


def line(found: dict[str, Any]) -> str:
    """One row for people."""
    row = found["row"]
    how = f"{row['title']}, {row['workers']} x batch {row['batch']}, MPS {'on' if row['mps'] else 'off'}"
    if "error" in found:
        return f"row {row['number']}: {how}: FAILED after {found['took_s']} s: {found['error']}"
    words = [f"row {row['number']}: {how}: ratio {found['ratio']:.2f} (wanted {row['wanted']})"]
    for name, middle in found["median"].items():
        raw = [f"{one['requests_per_s']:.1f}" for one in found["bursts"].get(name, ())]
        text = f"{name} {middle['requests_per_s']:.1f}/s"
        if raw:
            text += f" of {' '.join(raw)}, p50 {middle['p50_ms']:.1f} p99 {middle['p99_ms']:.1f} ms"
            text += f", {middle['errors']:.0f} errors"
        words.append(text)
    if "stages_ms" in found:
        stages = ", ".join(f"{name} {value:.2f}" for name, value in found["stages_ms"].items())
        words.append(f"each run of ours, ms: {stages}")
    words += [one["first_error"] for many in found["bursts"].values() for one in many if one["first_error"]][:1]
    fine = "" if found["agreement"]["fine"] else "ANSWERS DIFFER: "
    return "; ".join([*words, fine + found["agreement"]["text"], f"took {found['took_s']} s"])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All rows as Markdown."""
    lines = [
        "| Row | Model and input | Workers x batch | MPS | Naive/s | Ours/s | Ratio | Wanted | p99 of both | Errors |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for found in rows:
        row = found["row"]
        mps = "on" if row["mps"] else "off"
        head = f"| {row['number']} | {row['title']} | {row['workers']} x {row['batch']} | {mps} |"
        if "error" in found:
            lines.append(f"{head} | | failed | {row['wanted']} | | |")
            continue
        middle = found["median"]
        naive, ours = middle["naive"], middle["ours"]
        errors = sum(one.get("errors", 0) for one in middle.values())
        lines.append(
            f"{head} {naive['requests_per_s']:.1f} | {ours['requests_per_s']:.1f} | {found['ratio']:.2f} "
            f"| {row['wanted']} | {naive['p99_ms']:.1f}, {ours['p99_ms']:.1f} ms | {errors:.0f} |"
        )
        for name in ("noop", "bare"):
            if name in middle:
                most = middle[name]["requests_per_s"]
                share = ours["requests_per_s"] / most if most else 0.0
                notes.append(f"Row {row['number']}: {name} {most:.1f}/s, ours is {share:.1%} of it.")
        if not found["agreement"]["fine"]:
            notes.append(f"Row {row['number']}: the answers differ: {found['agreement']['text']}.")
    return "\n".join([*lines, "", *notes]).strip()


def machine() -> dict[str, Any]:
    """What it ran on."""
    packages: dict[str, str | None] = {}
    for name in ("torch", "transformers", "torchvision", "torchserve", "numpy", "pillow"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    found: dict[str, Any] = {"cores": os.cpu_count(), "python": platform.python_version(), "packages": packages}
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        found["gpus"] = [pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]
        found["driver"] = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
    except Exception as error:
        found["gpus"] = f"none: {error}"
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__)
    everything = ",".join(str(row.number) for row in ROWS)
    options.add_argument("--rows", default=everything, metavar="N,N", help="(default: %(default)s)")
    options.add_argument("--seconds", type=float, default=4.0, help="counted time of a burst (default: %(default)s)")
    options.add_argument("--repeats", type=int, default=3, help="bursts of each side (default: %(default)s)")
    options.add_argument("--out", type=Path, metavar="FILE", help="write everything there as JSON, after every row")
    options.add_argument("--work", type=Path, metavar="DIR", help="keep models there for the next run")
    options.add_argument("--cpu", action="store_true", help="tiny models, MPS off, to try it without a GPU")
    return options


def main() -> int:
    """Measure; 0 if every row could be measured with equal answers."""
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped
    wanted = {int(number) for number in options.rows.split(",")}
    if unknown := wanted - {row.number for row in ROWS}:
        sys.exit(f"There are no rows {sorted(unknown)}.")
    rows = [row.for_cpu() if options.cpu else row for row in ROWS if row.number in wanted]
    with tempfile.TemporaryDirectory(prefix="ts-mps-bench-") as scratch:
        work = (options.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for row in rows:
            shutil.rmtree(work / f"row-{row.number}", ignore_errors=True)
        bench = Bench(options, work)
        fine = bench.run(rows)
    print(f"\n{table(bench.rows)}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())

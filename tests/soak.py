"""Minutes of load with a random fault every so often, each failed request explained by its fault, and nothing leaked.

    python tests/soak.py                            # 20 minutes on up to two real GPUs
    python tests/soak.py --seconds 60 --simulated   # on simulated ones

The faults come in shuffled rounds of all kinds, because java may die five times within ten minutes and not more often.
Exit code 0: after each fault all was as planned again before the next one was due (or within what that fault may
take, where this is more), every failed request belongs to a fault that may cost it, and the end finds as many
processes, files, descriptors and as much memory as the beginning.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from breakable import REAL, SIMULATED
from breaking import HEAD, Outcome, Scene
from serving import Serving
from support import SIMULATOR, eventually, mps_processes, simulated_gpu

#: What may have grown without being a leak: descriptors, of connections that come and go, and MiB.
DESCRIPTORS = {"guardian": 8, "java": 40}
GUARDIAN_MIB, GPU_MIB = 64, 64
#: Seconds of quiet before anything is counted.
SETTLING = 10.0
#: Seconds of load without a fault, in which the guardian's cost is taken, and the part of a core that it may use.
WATCHED, COST = 60.0, 0.01


@dataclass(frozen=True)
class Footprint:
    """What an instance that serves holds.

    Attributes:
        processes: Name -> how many.
        descriptors: Open files of the guardian and of java.
        files: Files in the runtime folder, but for those that are named by pid or time, and their number.
        guardian_mib: Resident memory of the guardian.
        gpu_mib: Memory in use on its GPUs; 0 on simulated ones.
    """

    processes: Counter[str]
    descriptors: dict[str, int]
    files: frozenset[str]
    guardian_mib: float
    gpu_mib: float

    def leaked(self, before: Footprint) -> list[str]:
        """What there is more of than before, a sentence each."""
        # One that is missing is the plan's business.
        more = self.processes - before.processes
        found = [f"processes: {before.processes} and {more} more"] if more else []
        found += [
            f"descriptors of {name}: {before.descriptors[name]} -> {count}"
            for name, count in self.descriptors.items()
            if count > before.descriptors[name] + DESCRIPTORS[name]
        ]
        if fresh := self.files - before.files:
            found.append(f"files: {sorted(fresh)}")
        if self.guardian_mib > before.guardian_mib + GUARDIAN_MIB:
            found.append(f"memory of the guardian: {before.guardian_mib:.0f} -> {self.guardian_mib:.0f} MiB")
        if self.gpu_mib > before.gpu_mib + GPU_MIB:
            found.append(f"GPU memory: {before.gpu_mib:.0f} -> {self.gpu_mib:.0f} MiB")
        return found


#: Files that come with faults and are bounded by themselves: what did not load (32), what is written now and then, the
#: daemons' logs and sockets; and the simulator's own.
_PASSING = (
    *("failures/", "slots/held", "events.jsonl", "guardian.log", "reported.json", "stop.json", "request.json"),
    *("/log/", "/pipe/", "/sim-"),
)


def footprint(serving: Serving, simulated: bool) -> Footprint:
    """Count."""
    state = serving.state()
    guardian, java = psutil.Process(state.guardian.pid), psutil.Process(state.java.pid)
    names = Counter(_name(process) for process in {*serving.processes(), *mps_processes(serving.folder)})
    root = serving.home.root
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or path.is_socket()}
    return Footprint(
        names,
        {"guardian": guardian.num_fds(), "java": java.num_fds()},
        frozenset(name for name in files if not any(passing in name for passing in _PASSING)),
        guardian.memory_info().rss / 2**20,
        0.0 if simulated else _gpu_mib(serving),
    )


def cost(serving: Serving, seconds: float) -> float:
    """Part of one core that the guardian and the programs that it calls use over so many seconds."""
    guardian = psutil.Process(serving.state().guardian.pid)
    before, began = guardian.cpu_times(), time.monotonic()
    time.sleep(seconds)
    return (sum(guardian.cpu_times()[:4]) - sum(before[:4])) / (time.monotonic() - began)


def _name(process: psutil.Process) -> str:
    words: list[str] = []
    with suppress(psutil.Error):  # it has just ended
        words = process.cmdline()
    known = ("ts_mps.torchserve.worker", "org.pytorch.serve.ModelServer", "ts_mps.guardian.background")
    return next((name for name in known if name in words), Path(words[0]).name if words else "?")


def _gpu_mib(serving: Serving) -> float:
    import pynvml

    pynvml.nvmlInit()
    try:
        uuids = serving.environ["CUDA_VISIBLE_DEVICES"].split(",")
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        return sum(pynvml.nvmlDeviceGetMemoryInfo(handle).used for handle in handles) / 2**20
    finally:
        pynvml.nvmlShutdown()


def rounds(faults: list[str], dice: random.Random) -> Iterator[str]:
    """All faults again and again, each round in another order."""
    while True:
        yield from dice.sample(faults, len(faults))


def soak(scene: Scene, seconds: float, every: float, dice: random.Random) -> list[Outcome]:
    """Break something every so often until the time is over, or until something does not come back."""
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for fault in rounds(list(scene.faults), dice):
        due = time.monotonic() + every
        if due > end:
            break
        outcomes.append(scene.breaks(fault, dice.choice(scene.models)))
        print(outcomes[-1].row(), flush=True)
        if outcomes[-1].trouble:
            break
        time.sleep(max(0.0, due - time.monotonic()))
    return outcomes


def environment(parsed: argparse.Namespace, folder: Path) -> tuple[dict[str, str], int]:
    """The environment of the instance, and how many GPUs it gets."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    if not parsed.simulated:
        from ts_mps.gpu.inventory import read_inventory

        gpus = [gpu for gpu in read_inventory().gpus if gpu.index in parsed.gpus]
        visible = ",".join(gpu.uuid for gpu in gpus)
        return {**os.environ, "PYTHONPATH": ":".join(paths), "CUDA_VISIBLE_DEVICES": visible}, len(gpus)
    return {
        **os.environ,
        "PYTHONPATH": ":".join([str(SIMULATOR), *paths]),
        "PATH": f"{SIMULATOR}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SIM_GPUS": json.dumps([simulated_gpu(0), simulated_gpu(1)]),
        "SIM_NVML_MODES": str(folder / "compute-modes.json"),
    }, 2


def checked(serving: Serving, scene: Scene, parsed: argparse.Namespace) -> tuple[list[Outcome], list[str]]:
    """The faults, and everything that was wrong with them or with what they left, a sentence each."""
    with scene:
        time.sleep(SETTLING)
        before = footprint(serving, parsed.simulated)
        used = 0.0
        if not parsed.simulated:  # whose programs are written in Python, and cost more than the real ones
            used = cost(serving, WATCHED)
            print(f"Watching took {used:.2%} of a core.")
        print(HEAD)
        outcomes = soak(scene, parsed.seconds, parsed.every, random.Random(parsed.seed))
    wrong = [f"Watching took {used:.2%} of a core."] if used > COST else []
    wrong += [sentence for outcome in outcomes for sentence in outcome.wrong]
    wrong += scene.unexplained
    for one in outcomes:
        # A daemon that hangs may take as long as two faults are apart, and its own limit has been looked at.
        if one.back is not None and one.back > parsed.every > (one.blow.allowed or 0):
            wrong.append(f"{one.fault}: back after {one.back:.0f} s")
    time.sleep(SETTLING)
    problems = serving.status().problems
    wrong += [f"at the end: {problem}" for problem in problems]
    if not problems:
        leaked: list[str] = []

        def settled() -> bool:
            # Questions to daemons and TorchServe's metrics command are processes that come and go.
            leaked[:] = footprint(serving, parsed.simulated).leaked(before)
            return not leaked

        eventually(settled, SETTLING)
        wrong += leaked
    stopped = serving.ts_mps("stop")
    wrong += [f"the stop: {stopped.stderr}"] if stopped.returncode else []
    return outcomes, wrong + [f"left: {what}" for what in serving.left()]


def summary(scene: Scene, outcomes: list[Outcome]) -> str:
    """Each failed request by the fault that it is due to."""
    failed = sum((statuses for outcome in outcomes for statuses in outcome.failed.values()), Counter())
    sent = sum(sum(outcome.sent.values()) for outcome in outcomes)
    lines = [f"{len(outcomes)} faults, {sent} requests, {failed.total()} failed {dict(failed)}"]
    for fault in scene.faults:
        mine = [outcome for outcome in outcomes if outcome.fault == fault]
        cost = sum(statuses.total() for outcome in mine for statuses in outcome.failed.values())
        lines.append(f"  {fault:<16}{len(mine):>3} times, {cost} failed")
    return "\n".join(lines)


def options() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1200.0, help="how long (default: %(default)s)")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two faults (default: %(default)s)")
    parser.add_argument("--gpus", type=int, nargs="+", default=[0, 1], help="nvidia-smi's numbers (default: 0 1)")
    parser.add_argument("--workers", type=int, help="of each GPU (default: 4; simulated: 2)")
    parser.add_argument("--clients", type=int, help="of each GPU (default: 8; simulated: 2)")
    parser.add_argument("--seed", type=int, default=6, help="of the order of the faults (default: %(default)s)")
    parser.add_argument("--simulated", action="store_true", help="two simulated GPUs")
    return parser.parse_args()


def main() -> int:
    """Run it."""
    parsed = options()
    folder = Path(tempfile.mkdtemp(prefix="soak", dir="/tmp"))
    environ, gpus = environment(parsed, folder)
    # What this process looks up itself is of the same programs and GPUs.
    os.environ.update({name: environ[name] for name in ("PATH", "CUDA_VISIBLE_DEVICES") if name in environ})
    serving = Serving(folder, environ)
    serving.environ.update({name: environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in environ})
    idle = 0.0 if parsed.simulated else _gpu_mib(serving)
    few = parsed.simulated
    workers, clients = parsed.workers or (2 if few else 4), parsed.clients or (2 if few else 8)
    try:
        scene = Scene(serving, SIMULATED if few else REAL, gpus=gpus, workers=workers, clients=clients)
        outcomes, wrong = checked(serving, scene, parsed)
        if not few and not eventually(lambda: _gpu_mib(serving) <= idle + 8, 20):
            wrong.append(f"GPU memory after the stop: {idle:.0f} -> {_gpu_mib(serving):.0f} MiB")
    finally:
        serving.kill_everything()
        for process in mps_processes(folder):
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{summary(scene, outcomes)}")
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    return 1 if wrong or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())

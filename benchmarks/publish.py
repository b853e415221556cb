"""Measure studies of ``ts-mps bench compare --reproduce`` on several GPUs at once: one lane for each GPU.

    python benchmarks/publish.py --out studies --minutes 60 \\
        results/text+vivo/vivo-ranking:workers=4,12:seconds=5 results/ranking results/images

Each word is a lane: studies that one GPU measures one after the other on host cores of its own. A study is NAME/PART,
and behind it options of the command as :NAME=VALUE; the next one follows behind a +. A lane of - leaves its GPU and its
cores to something else. Studies of different lanes share the host's memory and PCIe links, arms of one study do so to
the same degree. When the time is over, or at a Ctrl-C, every study ends as by Ctrl-C, and the same command goes on with
what is missing.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ts_mps.bench.cores import core_siblings, usable_cores
from ts_mps.bench.load.workloads import known
from ts_mps.bench.reproductions import REPRODUCTIONS, Ground
from ts_mps.gpu.inventory import read_inventory

#: A lane needs no more: four workers, TorchServe's frontend, and a generator.
_MOST_CORES = 16
#: Seconds that a study gets to stop its server, which may take two minutes, and to write its file.
_END_S = 150.0
_POLL_S = 0.5


@dataclass(frozen=True)
class Item:
    """One study of a lane: of which reproduction, which part, and options of the command."""

    reproduction: str
    part: str
    options: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Item:
        """An item from ``NAME/PART:OPTION=VALUE:...``.

        Raises:
            ValueError: It has another form, or there is no such study.
        """
        name, *options = text.split(":")
        reproduction, _, part = name.partition("/")
        if not part or not all("=" in option for option in options):
            raise ValueError(f"{text!r} is not NAME/PART:OPTION=VALUE")
        if name not in (names := _names()):
            raise ValueError(f"There is no study {name!r}; there are {', '.join(names)}")
        return cls(reproduction, part, tuple(f"--{option}" for option in options))


def _names() -> tuple[str, ...]:
    """NAME/PART of every study, on a GPU and without one."""
    made = [(name, make(Ground(tiny, cores=1))) for name, make in REPRODUCTIONS.items() for tiny in (False, True)]
    return tuple(dict.fromkeys(f"{name}/{part.name}" for name, parts in made for part in parts))


def read_lane(text: str) -> list[Item]:
    """The studies of one lane; none for ``-``.

    Raises:
        ValueError: As in :meth:`Item.parse`.
    """
    return [] if text == "-" else [Item.parse(item) for item in text.split("+")]


class Lane(threading.Thread):
    """Measures its studies on one GPU.

    Args:
        gpu: nvidia-smi's number of the GPU; None on a machine without one.
        cores: Its host cores.
        items: What it measures.
        out: Folder for the studies, one for each reproduction.
        work: Folder for built models.
        over: Set when it has to be over.
    """

    def __init__(
        self,
        gpu: int | None,
        cores: Sequence[int],
        items: Sequence[Item],
        out: Path,
        work: Path,
        over: threading.Event,
    ) -> None:
        super().__init__()
        self._gpu, self._cores, self._items = gpu, cores, items
        self._out, self._work, self._over = out, work, over
        self.codes: list[int] = []

    def run(self) -> None:
        """Measure one study after the other until it has to be over."""
        for item in self._items:
            if not self._over.is_set():
                self.codes.append(self._measure(item))

    def command(self, item: Item) -> list[str]:
        """What measures a study."""
        command = [sys.executable, "-m", "ts_mps", "bench", "compare", "--reproduce", item.reproduction]
        command += ["--part", item.part, "-o", str(self._out / item.reproduction), "--work", str(self._work)]
        command += item.options
        return command + (["--gpu", str(self._gpu)] if self._gpu is not None else [])

    def _measure(self, item: Item) -> int:
        log = self._out / f"{item.reproduction}-{item.part}.log"
        with log.open("a") as stream:
            # A process of ours between, as affinity belongs to the thread that starts it.
            os.sched_setaffinity(0, self._cores)
            process = subprocess.Popen(self.command(item), stdout=stream, stderr=stream, start_new_session=True)
            while process.poll() is None and not self._over.wait(_POLL_S):
                pass
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                return process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()


def _whole_cores() -> list[int]:
    """Usable cores, hardware threads of one core side by side, so that no two lanes share one."""
    first = {core: min(together) for together in core_siblings() for core in together}
    return sorted(usable_cores(), key=lambda core: (first.get(core, core), core))


def main() -> int:
    """Run the lanes; the exit code is 0 if every study is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the studies")
    parser.add_argument("--work", type=Path, help="folder for built models (default: OUT/work)")
    parser.add_argument("--minutes", type=float, default=60.0, help="when to break off (default: %(default)g)")
    parser.add_argument("lanes", nargs="+", metavar="NAME/PART[:OPTION=VALUE]+...")
    options = parser.parse_args()
    over = threading.Event()
    if not known():
        parser.error("call it in a checkout: named workloads are not part of an installed package")
    try:
        lanes = [read_lane(lane) for lane in options.lanes]
    except ValueError as error:
        parser.error(str(error))
    gpus = read_inventory().gpus
    if gpus and len(lanes) > len(gpus):
        parser.error(f"there are {len(lanes)} lanes and {len(gpus)} GPUs")
    if not gpus and len(lanes) > 1:
        parser.error("without a GPU there can be one lane")
    options.out.mkdir(parents=True, exist_ok=True)
    cores = _whole_cores()
    each = min(_MOST_CORES, len(cores) // len(lanes))
    threads = [
        Lane(
            gpus[number].index if gpus else None,
            cores[number * each : (number + 1) * each],
            items,
            options.out.resolve(),
            (options.work or options.out / "work").resolve() / str(number),
            over,
        )
        for number, items in enumerate(lanes)
    ]
    # Studies run in sessions of their own: whoever ends this ends them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    timer = threading.Timer(60 * options.minutes, over.set)
    for thread in (timer, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    timer.cancel()
    for items, thread in zip(lanes, threads, strict=True):
        for item, code in zip(items, [*thread.codes, *["not begun"] * len(items)], strict=False):
            print(f"{item.reproduction}/{item.part}: {'complete' if code == 0 else f'ended with {code}'}")
    return 0 if all(thread.codes == [0] * len(items) for items, thread in zip(lanes, threads, strict=True)) else 1


if __name__ == "__main__":
    sys.exit(main())

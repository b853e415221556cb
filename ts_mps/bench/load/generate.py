"""A load made by Locust in processes of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ts_mps.bench.claims import Ports
from ts_mps.bench.load.spec import Spec
from ts_mps.bench.records import LoadResult
from ts_mps.errors import PreflightError, TsMpsError, UsageError
from ts_mps.files import last_lines, read_json
from ts_mps.profile.interrupts import uninterrupted

#: Seconds for Locust to import, fork, connect and read the payloads; on a busy machine that takes some.
_STARTING_S = 60.0
#: Seconds from the last answer to its end: counts are merged, processes end.
_ENDING_S = 20.0
#: Seconds that Locust gets to end by itself once its result is there.
_LEAVING_S = 5.0
_POLL_S = 0.05
_LOG_LINES = 25
_HERE = Path(__file__).resolve().parent


class LoadError(TsMpsError):
    """The load could not be made: Locust died or did not end."""


def generate(spec: Spec, cores: Sequence[int], *, interrupted: Callable[[], bool] = lambda: False) -> LoadResult:
    """Make a load and wait until it is over, at most its own times, ``spec.timeout`` and 80 s for start and end.

    Args:
        spec: What is sent; its seconds are finite.
        cores: Numbers of the cores that the generator may use; empty for all of this process's.
        interrupted: Looked at 20 times a second; when it is true, the load is broken off.

    Raises:
        UsageError: The load has no end, or the cores are not there.
        PreflightError: There are no payloads, or Locust is not installed.
        LoadError: Locust died or did not end; the end of its log is in ``details``.
        KeyboardInterrupt: ``interrupted`` said so. Whatever is raised, no process is left.
    """
    if math.isinf(spec.load.seconds):
        raise UsageError("A load of ts-mps bench needs an end.")
    if importlib.util.find_spec("locust") is None:
        raise PreflightError("Locust is not installed.", "Install it: pip install 'ts-mps[bench]'.")
    allowed = os.sched_getaffinity(0)
    if not set(cores) <= allowed:
        raise UsageError(f"The generator cannot use the cores {sorted(set(cores) - allowed)}: they are not ours.")
    if not spec.bodies.is_dir():
        raise PreflightError(f"There is no folder {spec.bodies} with payloads.")
    with tempfile.TemporaryDirectory(prefix="ts-mps-load-") as scratch:
        return _generate(spec, sorted(set(cores) or allowed), Path(scratch), interrupted)


def _generate(spec: Spec, cores: Sequence[int], scratch: Path, interrupted: Callable[[], bool]) -> LoadResult:
    told, result, log = scratch / "spec.json", scratch / "result.json", scratch / "locust.log"
    absolute = replace(spec, bodies=spec.bodies.resolve(), references=spec.references.resolve())
    told.write_text(json.dumps(absolute.as_json()))
    longest = _STARTING_S + spec.load.warm_up + spec.load.seconds + spec.timeout + _ENDING_S
    deadline = time.monotonic() + longest
    process: subprocess.Popen[bytes] | None = None
    ports = Ports(1)
    try:
        with log.open("wb") as output, uninterrupted():
            process = subprocess.Popen(
                _command(spec, cores, told, result, ports.numbers[0]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                env=_environ(),
                # A session of its own: Ctrl-C in the terminal is ours to handle, and its processes end as one group.
                start_new_session=True,
            )
        while process.poll() is None and not result.exists():
            if interrupted():
                raise KeyboardInterrupt
            if time.monotonic() > deadline:
                raise LoadError(f"Locust did not end within {longest:.0f} s.", details=last_lines(log, _LOG_LINES))
            time.sleep(_POLL_S)
        found = read_json(result)
        if found is None:
            raise LoadError(f"Locust died: exit status {process.wait()}.", details=last_lines(log, _LOG_LINES))
        with contextlib.suppress(subprocess.TimeoutExpired):  # the result is whole; what is left is ended below
            process.wait(_LEAVING_S)
        return LoadResult.from_json(found)
    finally:
        if process is not None:
            with uninterrupted():
                _end(process)
        ports.release()


def _command(spec: Spec, cores: Sequence[int], told: Path, result: Path, port: int) -> list[str]:
    users = spec.load.connections or spec.processes
    command = [sys.executable, str(_HERE / "process.py"), str(os.getpid()), ",".join(map(str, cores))]
    command += ["-f", str(_HERE / "locustfile.py"), "--headless", "--only-summary", "--loglevel", "INFO"]
    command += ["--host", spec.base_url, "--users", str(users), "--spawn-rate", str(users)]
    command += ["--stop-timeout", "0", "--spec", str(told), "--result", str(result)]
    if spec.processes > 1:
        command += ["--processes", str(spec.processes), "--expect-workers-max-wait", str(int(_STARTING_S))]
        command += ["--master-host", "127.0.0.1", "--master-port", str(port)]
        command += ["--master-bind-host", "127.0.0.1", "--master-bind-port", str(port)]
    return command


def _environ() -> dict[str, str]:
    """This process's environment without what would change Locust's options, and with this very package in it."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    path = os.pathsep.join(filter(None, (str(_HERE.parents[2]), environ.get("PYTHONPATH"))))
    # Arrays are small here, and a pool of threads for each process would only take cores from the others.
    return {**environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

"""Writes that fail at each point of a life: a sentence where somebody waits for one, and nothing left.

A process whose RLIMIT_FSIZE is 0 gets an OSError from every write to a file, as on a full disk.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import pytest
from serving import CLIENT, ECHO
from support import eventually, mps_processes

#: Becomes a client of the simulated daemon, and takes its time.
LATE_CLIENT = CLIENT.replace("import os", "import os, time").replace(".touch()", ".touch()\n        time.sleep(2)")

FULL = "import resource\n" + ECHO.replace("pass", "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))")


def fill_the_disk_of(pid: int) -> None:
    psutil.Process(pid).rlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.mark.parametrize("front", [[], ["--foreground"]], ids=["background", "foreground"])
def test_the_guardian_in_the_middle_of_a_start(simulated, front):
    simulated.archive("late", LATE_CLIENT)
    process = simulated.popen(simulated.start_command("--models", "late.mar", *front))
    # The pid file is the last thing that is written before the workers are waited for.
    assert eventually(lambda: (state := simulated.state()) is not None and Path(state.pid_file).exists(), 60)
    fill_the_disk_of(simulated.state().guardian.pid)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 3, output
    assert "The start could not write" in output and "Make room" in output
    assert "Traceback" not in output
    assert eventually(lambda: simulated.left() == [] and mps_processes(simulated.folder) == []), simulated.left()


def test_a_worker_in_the_middle_of_a_start(serving):
    """It cannot even write down why it did not load; TorchServe's log has it."""
    serving.archive("full", FULL)
    done = serving.start("--models", "full.mar", "--wait-timeout", "8")
    assert done.returncode == 6, done.stderr
    assert "File too large" in done.stderr
    assert eventually(lambda: serving.left() == []), serving.left()


def test_a_stop(serving):
    serving.archive("echo", ECHO)
    assert serving.start("--models", "echo.mar").returncode == 0
    fill_the_disk_of(serving.state().guardian.pid)
    limited = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (0, 0)); from ts_mps.cli.main import run; run()"
    stopped = serving.call([sys.executable, "-c", limited, "stop"])
    assert stopped.returncode == 0, stopped.stderr
    assert eventually(lambda: serving.left() == []), serving.left()

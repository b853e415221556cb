"""The bare loop of bare.py beside the idle server: what the GPU itself gives."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from rows import Row
from server import REPOSITORY, Failed, Server

#: Seconds for all of its processes to load, capture, run and end.
_BARE_S = 400


def bare(server: Server, folder: Path, row: Row, seconds: float, *, cpu: bool) -> dict[str, Any]:
    """Run it once with the row's workers and batch, as clients of the server's daemon.

    Args:
        server: Which runs, and idles.
        folder: The model's folder.
        row: Its workers and batch.
        seconds: Counted time.
        cpu: Whether to run without a GPU.

    Returns:
        What bare.py prints: ``sequences_per_s`` and its settings.

    Raises:
        Failed: It failed or did not end.
    """
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "bare.py"), "--model", str(folder)]
    command += ["--processes", str(row.workers), "--batch", str(row.batch), "--seconds", str(seconds)]
    command += ["--cpu"] if cpu else []
    with subprocess.Popen(
        command, env=server.client_environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=_BARE_S)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"not done in {_BARE_S} s") from error
        finally:
            # Its workers outlive a parent that is killed, and would hold the GPU during the next rows.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise Failed(err[-3000:])
    document: dict[str, Any] = json.loads(out.splitlines()[-1])
    return document

"""What a stop waits for before it says that nothing is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from watching import instance, state

from ts_mps.guardian import takedown
from ts_mps.guardian.metrics import command
from ts_mps.guardian.takedown import take_down
from ts_mps.paths import Home
from ts_mps.plan.model import Plan


@pytest.mark.parametrize(("lasts", "waits"), [(0.6, True), (60, False)])
def test_a_collector_that_torchserve_started_at_its_end_is_waited_for(short_dir: Path, monkeypatch, lasts, waits):
    monkeypatch.setattr(takedown, "COLLECTOR_SECONDS", 10.0 if waits else 0.2)
    paths = instance(short_dir, Plan((), ()))
    before = state(short_dir, gpus=(), java=None)
    words = [sys.executable, "-c", f"import time; time.sleep({lasts})", *command(paths, ["GPU-0"])]
    collector = subprocess.Popen(words)
    try:
        assert take_down(Home(short_dir), paths, before, {}, drain=0, report=print) == ()
        assert (collector.poll() is not None) is waits
    finally:
        collector.kill()
        collector.wait()

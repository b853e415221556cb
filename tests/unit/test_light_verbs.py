"""What a verb imports is what its user waits for, and what a guardian keeps in memory for as long as it serves."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

#: Seconds and hundreds of megabytes that only workers, planners of profiles and reports have a use for.
HEAVY = ("torch", "transformers", "scipy", "matplotlib", "locust", "pydantic")


@pytest.mark.parametrize("verb", ["start", "stop", "status", "restart", "reload", "scale", "plan", "doctor", "events"])
def test_a_verb_does_not_import_what_only_workers_need(verb: str) -> None:
    code = f"import json, sys, ts_mps.cli.{verb}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert f"ts_mps.cli.{verb}" in loaded
    assert [name for name in HEAVY if name in loaded] == []

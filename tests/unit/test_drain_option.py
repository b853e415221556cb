"""``--drain-timeout`` of stop and restart: a drain until infinity, or until NaN, would never end."""

from __future__ import annotations

import pytest

from ts_mps.cli import restart, stop
from ts_mps.errors import UsageError


@pytest.mark.parametrize("verb", [stop.main, restart.main])
@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_what_is_no_time_is_refused(verb, seconds, short_dir, monkeypatch):
    monkeypatch.setenv("TS_MPS_HOME", str(short_dir))
    with pytest.raises(UsageError, match="is not a number of seconds from 0 on"):
        verb([f"--drain-timeout={seconds}"])

"""What the parent of a guardian in the background hears of it: progress, readiness, errors of every kind, its death."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import eventually

from ts_mps.errors import MpsError, NotReadyError, PreflightError, TsMpsError
from ts_mps.events import Event
from ts_mps.guardian import background
from ts_mps.guardian import log as log_module
from ts_mps.mps.control import DaemonTimeout
from ts_mps.torchserve.client import ApiError


@pytest.fixture
def begin(tmp_path: Path, monkeypatch):
    """Start a guardian whose life is the given function of (report, ready); what the parent was told."""
    told: list[str] = []

    def begin(life) -> int:
        class Guardian:
            def __init__(self, prepared, report, log) -> None:
                self.report, self.log = report, log

            def run(self, ready) -> int:
                return life(self.report, ready, *((self.log,) if begin.logs else ()))

        monkeypatch.setattr(background, "Guardian", Guardian)
        home = SimpleNamespace(root=tmp_path)
        paths = SimpleNamespace(guardian_log=tmp_path / "guardian.log", name="default", root=tmp_path)
        return background.start(SimpleNamespace(paths=paths, home=home), hear)

    def hear(text: str) -> None:
        told.append(text)
        begin.on_report()

    begin.told, begin.on_report, begin.logs = told, lambda: None, False
    return begin


def raiser(error: BaseException):
    def life(report, ready):
        raise error

    return life


def test_ready_after_some_progress(begin, tmp_path):
    def life(report, ready):
        report("starting TorchServe")
        report("2 of 2 workers ready")
        ready()
        report("the parent does not hear this")
        (tmp_path / "served").touch()
        return 0

    assert begin(life) == 0
    assert eventually((tmp_path / "served").exists)
    assert begin.told == ["starting TorchServe", "2 of 2 workers ready"]


def test_what_is_said_after_the_start_goes_into_the_log_line_by_line(begin, tmp_path):
    begin.logs = True

    def life(report, ready, log):
        ready()
        log(Event("java-gone", "TorchServe ended by itself.", clock=2.0, time=5.0))
        report("stopping\nTorchServe")
        (tmp_path / "served").touch()
        return 0

    assert begin(life) == 0
    assert eventually((tmp_path / "served").exists)
    first, second = map(json.loads, (tmp_path / "guardian.log").read_text().splitlines())
    assert Event.from_json(first) == Event("java-gone", "TorchServe ended by itself.", clock=2.0, time=5.0)
    assert (second["kind"], second["text"]) == ("guardian", "stopping\nTorchServe")


def test_the_log_is_turned_over(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "_LONGEST", 200)

    def life(report, ready):
        ready()
        for number in range(20):
            report(f"{number} {'x' * 50}")
        os.write(1, b"all of it goes into the new one\n")
        (tmp_path / "served").touch()
        return 0

    assert begin(life) == 0
    assert eventually((tmp_path / "served").exists)
    assert (tmp_path / "guardian.log").read_text().endswith("all of it goes into the new one\n")
    assert 200 < (tmp_path / "guardian.log.1").stat().st_size < 1000
    assert (tmp_path / "guardian.log").stat().st_size < 1000


def test_the_exit_code_of_an_interrupted_start(begin):
    assert begin(lambda report, ready: 143) == 143


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TsMpsError("Already running.", "Stop it."), TsMpsError),
        (NotReadyError("Not ready.", "See below.", "line 1\nline 2"), NotReadyError),
        (DaemonTimeout("The daemon did not answer."), MpsError),
        (ApiError("TorchServe refused to scale m.", status=403), NotReadyError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_an_error_arrives_whole_and_with_its_exit_code(begin, error, kind):
    with pytest.raises(kind) as raised:
        begin(raiser(error))
    heard = raised.value
    assert (heard.what, heard.remedy, heard.details) == (error.what, error.remedy, error.details)
    assert heard.exit_code == error.exit_code


def test_a_bug_of_ours_shows_its_traceback(begin):
    with pytest.raises(TsMpsError, match=r"The guardian failed: KeyError\('gpu'\)") as raised:
        begin(raiser(KeyError("gpu")))
    assert "in life" in raised.value.details


def test_a_guardian_that_is_killed(begin, tmp_path):
    def life(report, ready):
        os.write(2, b"its last words\n")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(NotReadyError, match="The guardian died during the start") as raised:
        begin(life)
    assert "ts-mps stop" in raised.value.remedy
    assert raised.value.details == "its last words"


def test_a_log_that_cannot_be_written(begin, tmp_path):
    (tmp_path / "guardian.log").mkdir()
    with pytest.raises(PreflightError, match=r"could not write .*guardian\.log: Is a directory"):
        begin(lambda report, ready: pytest.fail("it started"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_to_the_guardian(begin, number):
    def life(report, ready):
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        report("now")
        signal.sigwait({number})
        return 128 + number

    begin.on_report = lambda: os.kill(os.getpid(), number)
    before = signal.getsignal(number)
    assert begin(life) == 128 + number
    assert signal.getsignal(number) is before

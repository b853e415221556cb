"""The command of a start, read from its guardian: one in the background writes its own log, wherever that went."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import eventually
from watching import instance, state

from ts_mps.errors import NotRunningError, UsageError
from ts_mps.files import try_lock
from ts_mps.guardian.again import command_of
from ts_mps.processes import ProcessId


@pytest.fixture
def guarded(tmp_path):
    """An instance whose guardian is a child of ours that writes into a file of its folder, named by the test."""
    paths, children = instance(tmp_path), []

    def guard(name: str, *words: str):
        log = paths.guardian_log.with_name(name)
        with log.open("w") as stream:
            hold = [sys.executable, "-c", "print(flush=True); input()", *words]
            children.append(subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=stream, cwd=tmp_path))
        assert eventually(lambda: log.stat().st_size > 0), "until then /proc may not show its words"
        state(tmp_path, guardian=ProcessId.of(children[0].pid)).save(paths)
        assert try_lock(paths.guardian_lock) is not None
        return paths

    yield guard
    for child in children:
        child.kill()
        child.communicate()


def test_one_in_the_background(guarded, tmp_path):
    command = command_of(guarded("guardian.log", "start", "--models", "a.mar"))
    assert command.words[-3:] == ("start", "--models", "a.mar") and command.folder == tmp_path
    assert command.environ and "environ" not in repr(command)


@pytest.mark.parametrize("gone", [False, True])
def test_a_log_that_was_turned_over_is_still_its_own(guarded, gone):
    paths = guarded("guardian.log", "start")
    turned = paths.guardian_log.replace(paths.guardian_log.with_name("guardian.log.1"))
    paths.guardian_log.touch()
    if gone:
        turned.unlink()
    assert command_of(paths).words[-1] == "start"


def test_one_in_front_belongs_to_whoever_started_it(guarded):
    with pytest.raises(UsageError, match="runs in front"):
        command_of(guarded("journal", "start"))


def test_somebody_elses_child(guarded):
    with pytest.raises(UsageError, match="not started by ts-mps start"):
        command_of(guarded("guardian.log", "serve"))


def test_where_nobody_guards_it(tmp_path):
    paths = instance(tmp_path)
    state(tmp_path).save(paths)
    with pytest.raises(NotRunningError, match="Nobody guards"):
        command_of(paths)

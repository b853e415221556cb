"""Files of an instance whose parts are of different versions of ts-mps, as after an upgrade in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from watching import UUID, instance, state, watched

from ts_mps.errors import TsMpsError
from ts_mps.files import read_json, try_lock, write_json
from ts_mps.guardian import readiness
from ts_mps.guardian import status as status_module
from ts_mps.guardian.prepare import check_not_running
from ts_mps.guardian.state import load_state
from ts_mps.guardian.status import look
from ts_mps.guardian.stop import stop
from ts_mps.guardian.takeover import orphan
from ts_mps.guardian.watched import load_watched
from ts_mps.paths import Home, InstancePaths
from ts_mps.plan.model import Slot
from ts_mps.processes import myself
from ts_mps.torchserve.arguments import parse
from ts_mps.torchserve.failures import WorkerFailure, failures, record_failure
from ts_mps.worker_records import Proof, Share, WorkerRecord, records, sockets, unreadable, workers


@pytest.fixture
def paths(short_dir: Path) -> InstancePaths:
    made = instance(short_dir)
    state(short_dir).save(made)
    return made


def rewrite(file: Path, without: tuple[str, ...] = (), **more: object) -> None:
    """Make a file another version's: some fields less, some more."""
    value = read_json(file)
    assert value is not None
    write_json(file, {**{name: held for name, held in value.items() if name not in without}, **more})


def test_fields_that_are_not_known_are_left_out(paths):
    before = load_state(paths)
    gpu = {**asdict(before.gpus[0]), "colour": "green"}
    rewrite(paths.state, started=1.0, gpus=[gpu], java={**asdict(myself()), "user": "ts-mps"})
    assert load_state(paths) == before

    watched().save(paths)
    look = load_watched(paths)
    value = asdict(look)
    gpus, models = ([{**one, "colour": "green"} for one in value[part]] for part in ("gpus", "models"))
    rewrite(paths.watched, colour="green", gpus=gpus, models=models)
    assert load_watched(paths) == look


def test_fields_that_are_missing_have_defaults(paths):
    rewrite(paths.state, without=("clock", "why", "left", "error"))
    loaded = load_state(paths)
    assert (loaded.why, loaded.left, loaded.error, loaded.phase) == ("", (), "", "serving")


@pytest.mark.parametrize("without", ["clock", "java"])
def test_a_look_that_cannot_be_read_or_has_no_age_is_none(paths, without):
    watched().save(paths)
    rewrite(paths.watched, without=(without,))
    assert load_watched(paths) is None


#: What looks at an instance, or is done to it.
ABOUT: dict[str, Callable[[InstancePaths], object]] = {
    "stop": lambda paths: stop(Home(paths.root.parents[1]), paths, None, lambda text: None),
    "status": look,
    "status --ready": readiness.see,
    "start": lambda paths: check_not_running(parse([], {}), paths),
    "start, where nobody guards it": orphan,
}


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "not guarded"])
@pytest.mark.parametrize("about", ABOUT.values(), ids=ABOUT)
@pytest.mark.parametrize(
    ("more", "why"),
    [({"version": 9}, "it is of version 9, and this ts-mps reads version 1"), ({"gpus": None}, "not iterable")],
    ids=["another version", "not to be read"],
)
def test_what_cannot_be_read_is_never_taken_for_nothing(paths, about, more, why, guarded):
    rewrite(paths.state, **more)
    lock = try_lock(paths.guardian_lock) if guarded else None
    try:
        with pytest.raises(TsMpsError) as raised:
            about(paths)
    finally:
        if lock is not None:
            os.close(lock)
    assert str(paths.state) in raised.value.what and why in raised.value.what
    assert "Stop the instance with the ts-mps that started it" in raised.value.remedy
    assert paths.state.exists()


def worker(paths: InstancePaths, number: int, **more: object) -> Path:
    """The record of a worker that has gone."""
    me = myself()
    record = WorkerRecord(
        Slot(number, "bert", "1.0", UUID, cores=(0, 1)),
        True,
        me.pid,
        me.started,
        "ready",
        1.0,
        proof=Proof(462, 1.0),
        socket=f"/tmp/.ts.sock.{number}",
        got=Share(66, None, None, None, (0, 1)),
    )
    (paths.slots / f"{number:03}.lock").touch()
    file = paths.slots / f"{number:03}.json"
    write_json(file, {**asdict(record), **more})
    return file


def test_a_record_that_says_more_or_less_is_read(paths):
    file = worker(paths, 0)
    ((before, _),) = records(paths)
    value = asdict(before)
    nested = {part: {**value[part], "colour": "green"} for part in ("slot", "proof", "got")}
    rewrite(file, without=("clock", "listens"), colour="green", **nested)
    assert [record for record, _ in records(paths)] == [before] and unreadable(paths) == ()


def test_one_that_cannot_be_read_hides_none_of_the_others_and_is_a_problem(paths, monkeypatch):
    bad, _ = worker(paths, 0, slot=0), worker(paths, 1)
    locks = [try_lock(paths.slots / f"{number:03}.lock") for number in (0, 1)]
    try:
        assert [record.slot.number for record in workers(paths)] == [1] and unreadable(paths) == (bad,)
        assert [str(path) for path in sockets(paths)] == ["/tmp/.ts.sock.0", "/tmp/.ts.sock.1"], "both are cleaned up"
        monkeypatch.setattr(status_module, "_described", lambda _: ((), []))
        assert f"{bad} is of a worker of another version, and cannot be read." in look(paths).problems
    finally:
        for lock in locks:
            os.close(lock)


def test_failures_of_other_versions(paths):
    for pid in (1, 2, 3):
        record_failure(paths, WorkerFailure(pid, "bert", None, "what", "", clock=1000.0 + pid))
    first, second, third = sorted(paths.failures.glob("*.json"))
    rewrite(first, colour="green")
    rewrite(second, without=("what",))
    rewrite(third, without=("clock",))
    assert [failure.pid for failure in failures(paths)] == [1]

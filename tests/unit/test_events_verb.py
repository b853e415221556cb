"""``ts-mps events``: as a table, as JSON lines, and followed through the turn-over of the file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from contextlib import contextmanager
from datetime import datetime

import pytest
from support import hear_signals
from watching import UUID, instance

from ts_mps import events
from ts_mps.cli.events import line, since
from ts_mps.cli.main import main
from ts_mps.events import Event, followed, record, turned_over

FAULT = Event("server-fault", "The server is in FAULT.", UUID, "bert", 7, "cuda-error-700", time=1_000_000.0)
BACK = Event("recovered", "All workers are back.", UUID, seconds=4.25, time=1_000_010.0)


@pytest.fixture
def paths(short_dir):
    return instance(short_dir)


def show(paths, *words):
    return main(["events", "--runtime-dir", str(paths.root.parents[1]), *words])


def test_as_a_table(paths, capsys):
    record(paths, FAULT)
    record(paths, BACK)
    assert show(paths) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["TIME", "KIND", "GPU", "MODEL", "PID", "CAUSE", "TOOK", "WHAT"]
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_000_000))
    cells = ["server-fault", "GPU-00000000", "bert", "7", "cuda-error-700", "-", "The", "server", "is", "in", "FAULT."]
    assert first.split() == [*clock.split(), *cells]
    assert "4.2 s" in second and first.index("The server") == second.index("All workers") == head.index("WHAT")


def test_a_text_stays_on_its_line_and_out_of_the_terminal():
    text = line(Event("worker-fault", "first\nsecond\x1b[31m"))
    assert text.isprintable() and text.endswith("first second [31m")


def test_as_json_lines_that_are_read_back(paths, capsys):
    record(paths, FAULT)
    record(paths, BACK)
    assert show(paths, "--json") == 0
    shown = [Event.from_json(json.loads(one)) for one in capsys.readouterr().out.splitlines()]
    assert shown == [FAULT, BACK]


def test_since(paths, capsys):
    record(paths, FAULT)
    record(paths, BACK)
    when = datetime.fromtimestamp(1_000_005).isoformat()
    assert show(paths, "--json", "--since", when) == 0
    assert [json.loads(one)["kind"] for one in capsys.readouterr().out.splitlines()] == ["recovered"]
    assert show(paths, "--since", "1h") == 0
    told = capsys.readouterr()
    assert told.out == "" and "no events since then" in told.err


@pytest.mark.parametrize(("text", "ago"), [("90s", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604800)])
def test_a_while_ago(text, ago):
    assert since(text) == pytest.approx(time.time() - ago, abs=5)


def test_a_time_of_a_zone():
    assert since("1970-01-12T13:46:40+00:00") == 1_000_000


@pytest.mark.parametrize("text", ["", "10", "-5m", "yesterday", "5w", "9999999999s", "2025-13-01"])
def test_what_is_no_time(text, paths, capsys):
    with pytest.raises(ArgumentTypeError):
        since(text)
    assert show(paths, f"--since={text}") == 2


def test_never_started(short_dir, capsys):
    assert main(["events", "--runtime-dir", str(short_dir)]) == 7
    assert "never been started" in capsys.readouterr().err


def test_nothing_happened(paths, capsys):
    assert show(paths) == 0
    told = capsys.readouterr()
    assert told.out == "" and "has no events" in told.err
    assert show(paths, "--json") == 0
    assert capsys.readouterr() == ("", "")


def test_following_misses_nothing_at_the_turn_over(paths, monkeypatch):
    """Every event once and in order, with the file turned over every few events and a look only now and then."""
    monkeypatch.setattr(events, "_LONGEST", 1500)
    written, rounds = [], iter(range(40))

    def write(count):
        for _ in range(count):
            written.append(Event("recovered", str(len(written)), time=float(len(written))))
            record(paths, written[-1])

    def pause():
        round_ = next(rounds, None)
        if round_ is not None:
            write(round_ % 4)
        return round_ is not None

    write(5)
    inodes = set()
    seen = []
    for event in followed(paths, pause):
        inodes.add(paths.events.stat().st_ino)
        seen.append(event)
    assert seen == written and len(written) > 50
    assert turned_over(paths.events).exists() and len(inodes) > 1


def test_a_line_that_is_half_written_is_waited_for(paths):
    whole = json.dumps(FAULT.as_json()).encode() + b"\n"
    steps = [lambda: append(whole[:20]), lambda: append(whole[20:]), lambda: append(b"no event\n[]\n" + whole)]

    def append(part):
        with paths.events.open("ab") as stream:
            stream.write(part)

    def pause():
        if steps:
            steps.pop(0)()
            return True
        return False

    assert list(followed(paths, pause)) == [FAULT, FAULT]


def test_following_waits_for_the_first_event_ever(paths):
    def pause():
        if paths.events.exists():
            return False
        record(paths, FAULT)
        return True

    assert list(followed(paths, pause)) == [FAULT]


def test_an_event_of_one_who_had_the_old_file_open_is_not_lost(paths):
    record(paths, FAULT)
    late = paths.events.open("ab")
    turns = iter([True, False])

    def pause():
        if next(turns):
            paths.events.replace(turned_over(paths.events))
            late.write(json.dumps(BACK.as_json()).encode() + b"\n")
            late.close()
            record(paths, FAULT)
            return True
        return False

    assert list(followed(paths, pause)) == [FAULT, BACK, FAULT]


@contextmanager
def running(paths, *words):
    command = [sys.executable, "-m", "ts_mps", "events", "--runtime-dir", str(paths.root.parents[1]), *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_signals
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_following_cleanly(paths):
    record(paths, FAULT)
    with running(paths, "--follow", "--json") as process:
        assert json.loads(process.stdout.readline())["kind"] == "server-fault"
        record(paths, BACK)
        assert json.loads(process.stdout.readline())["kind"] == "recovered"
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=20)
        assert (rest, complaints, process.returncode) == ("", "", 0)


def test_a_reader_that_left_is_noticed_without_another_event(paths):
    record(paths, FAULT)
    with running(paths, "--follow") as process:
        process.stdout.readline()
        process.stdout.close()
        process.wait(timeout=20)
        assert (process.returncode, process.stderr.read()) == (0, "")


def test_a_closed_pipe_is_no_traceback(paths):
    for _ in range(2000):
        record(paths, FAULT)
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "ts_mps", "events", "--runtime-dir", str(paths.root.parents[1])]
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    _, complaints = process.communicate(timeout=30)
    assert (complaints, process.returncode) == ("", 0)

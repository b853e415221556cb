"""What a guardian in front tells of events, at a terminal and to a collector."""

from __future__ import annotations

import json
import os
import sys

from ts_mps.cli.start import teller
from ts_mps.events import Event

EVENT = Event("java-gone", "TorchServe ended by itself.", time=5.0)


def test_a_collector_gets_objects(capfd):
    said: list[str] = []
    teller(said.append)(EVENT)
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line) == EVENT.as_json() and said == []


def test_a_person_gets_sentences(capfd, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    teller(said.append)(EVENT)
    assert (capfd.readouterr().err, said) == ("", ["TorchServe ended by itself."])


def test_nobody_who_reads_ends_nothing(monkeypatch):
    kept = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    os.close(reader)
    try:
        teller(print)(EVENT)
    finally:
        os.dup2(kept, 2)
        os.close(kept)

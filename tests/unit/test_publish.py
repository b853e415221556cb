"""benchmarks/publish.py: lanes of studies, one for each GPU."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import eventually

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from publish import Item, Lane, read_lane  # noqa: E402

STUDY = """
import pathlib, sys, time
try:
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_item_is_a_study_and_options_of_the_command():
    assert Item.parse("vivo/vivo-ranking:workers=4,12:seconds=5") == Item(
        "vivo", "vivo-ranking", ("--workers=4,12", "--seconds=5")
    )
    for wrong in ("vivo", "vivo/", "vivo/a:blocks"):
        with pytest.raises(ValueError, match="NAME/PART"):
            Item.parse(wrong)
    for wrong in ("vivos/vivo-ranking", "results/texts", "results/text,results/images"):
        with pytest.raises(ValueError, match="there are results/text, results/ranking"):
            Item.parse(wrong)


def test_the_studies_of_a_lane_are_joined_by_a_plus():
    items = read_lane("results/text+vivo/vivo-ranking:workers=4,12")
    assert items == [Item("results", "text", ()), Item("vivo", "vivo-ranking", ("--workers=4,12",))]
    assert read_lane("-") == []


def test_what_is_over_ends_as_by_ctrl_c_and_nothing_follows(tmp_path, monkeypatch):
    begun = tmp_path / "begun"
    monkeypatch.setattr(Lane, "command", lambda self, item: [sys.executable, "-c", STUDY, str(begun)])
    over = threading.Event()
    lane = Lane(None, [0], [Item("a", "b", ()), Item("a", "c", ())], tmp_path, tmp_path / "work", over)
    lane.start()
    assert eventually(begun.exists)
    over.set()
    lane.join(30)
    assert lane.codes == [130]


def test_a_ctrl_c_ends_its_studies_too(tmp_path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    study = STUDY.replace("sys.exit", f"pathlib.Path({str(ended)!r}).touch(); sys.exit")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import publish\n"
        f"publish.Lane.command = lambda self, item: [sys.executable, '-c', {study!r}, {str(begun)!r}]\n"
        "sys.exit(publish.main())"
    )
    words = [sys.executable, "-c", code, "--out", str(tmp_path / "out"), "results/text"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert eventually(begun.exists, 30)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1 and "results/text: ended with 130" in out, err
    assert "Traceback" not in err and ended.exists()

"""Building a workload where others build it too, and where a build was broken off. The build is a stand-in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ts_mps.bench.load.bodies import read_bodies
from ts_mps.bench.load.workloads import Workload, prepare

BUILD = """
import sys, time
from pathlib import Path
words = sys.argv[1:]
named = dict(zip(words[::2], words[1::2]))
calls = Path(__file__).with_name("calls")
with calls.open("a") as file:
    file.write(" ".join(words[::2]) + "\\n")
if "--keep-model" in named:
    model = Path(named["--keep-model"])
    model.mkdir(parents=True)  # as the real one, it refuses a folder that holds something
    (model / "weights").write_text("w")
    time.sleep(0.2)
archive = Path(named["--store"], "it")
archive.mkdir(parents=True)
(archive / "whole").touch()
"""
BODIES = "def make(kind, model, **sizes):\n    return [b'one', b'three'], 'text/plain'\n"
WHAT = Workload("it", "It", "it", "small", "texts", (1, 8), 5, "status")


@pytest.fixture
def repository(tmp_path):
    for name, text in (("handlers/build/it.py", BUILD), ("benchmarks/bodies.py", BODIES)):
        (tmp_path / "repository" / name).parent.mkdir(parents=True)
        (tmp_path / "repository" / name).write_text(text)
    return tmp_path / "repository"


def calls(repository):
    return (repository / "handlers/build/calls").read_text().splitlines()


def test_studies_that_share_a_model_make_it_once(tmp_path, repository):
    def build(part: str):
        return prepare(WHAT, tmp_path / part, repository, tmp_path / "models" / "shared")

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(build, ["a", "b", "a", "b"]))
    assert all((one.archive / "whole").is_file() and one.mean_bytes == 4 for one in made)
    assert sorted(line.split()[0] for line in calls(repository)) == ["--model", "--preset"]


def test_what_a_build_that_was_broken_off_left_is_not_used(tmp_path, repository):
    for folder in ("model.part", "store.part/it", "bodies.part"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "half").touch()
    made = prepare(WHAT, tmp_path, repository)
    assert sorted(file.name for file in made.archive.iterdir()) == ["whole"]
    assert [body.body for body in read_bodies(made.bodies)] == [b"one", b"three"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        "bodies",
        "model",
        "repository",
        "store",
    ]
    prepare(WHAT, tmp_path, repository)
    assert len(calls(repository)) == 1, "a whole one is used again"

"""The load's parts that need no Locust: arrivals, answers, references, payloads, counts, workloads."""

from __future__ import annotations

import io
import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from load_server import Manners, load_server

from ts_mps.bench.load import Spec, read_bodies, record_references, workload, write_bodies
from ts_mps.bench.load.answers import difference, read, tolerance
from ts_mps.bench.load.arrivals import arrivals, payload_order
from ts_mps.bench.load.bodies import given_bodies
from ts_mps.bench.load.references import Judge
from ts_mps.bench.load.tally import Tally, result
from ts_mps.bench.load.workloads import known, prepare
from ts_mps.bench.records import Load, LoadResult
from ts_mps.errors import NotReadyError, PreflightError, UsageError
from ts_mps.profile.messages import Request

CLOSED = Load("closed", 4, 0.0, 2.0, 0.0, 0)
OPEN = Load("poisson", 0, 100.0, 2.0, 0.0, 0)


def spec(**changes: object) -> Spec:
    return replace(Spec("http://127.0.0.1:1", "/predictions/x", CLOSED), **changes)  # type: ignore[arg-type]


@settings(max_examples=50)
@given(st.sampled_from(["poisson", "constant"]), st.floats(0.5, 5000), st.integers(0, 99), st.integers(1, 9))
def test_the_parts_of_a_plan_are_the_plan(kind: str, rate: float, seed: int, of: int) -> None:
    # Past one block of drawn gaps, whose length no number of processes but powers of two divides.
    whole = list(itertools.islice(arrivals(kind, rate, seed), 5000))
    parts = [
        itertools.takewhile(lambda one: one[0] < 5000, arrivals(kind, rate, seed, share, of)) for share in range(of)
    ]
    assert sorted(itertools.chain(*parts)) == whole
    assert all(one[1] <= other[1] for one, other in itertools.pairwise(whole))


def test_poisson_arrivals_are_a_poisson_process_and_constant_ones_are_even() -> None:
    instants = np.array([instant for _, instant in itertools.islice(arrivals("poisson", 50.0, 3), 20_000)])
    gaps = np.diff(instants)
    assert np.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert np.std(gaps) == pytest.approx(1 / 50, rel=0.03)  # exponential: as large as the mean
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03
    assert [instant for _, instant in itertools.islice(arrivals("constant", 50.0, 3), 3)] == pytest.approx(
        [0, 0.02, 0.04]
    )
    assert list(itertools.islice(arrivals("poisson", 50.0, 4), 9)) != list(
        itertools.islice(arrivals("poisson", 50.0, 3), 9)
    )


def test_every_payload_is_sent() -> None:
    assert sorted(payload_order(7, 1)) == list(range(7))
    assert payload_order(50, 1) != payload_order(50, 2)


@pytest.mark.parametrize(
    ("answer", "reference", "found"),
    [
        ({"label": "a", "score": 0.5}, {"label": "a", "score": 0.503}, ""),
        ({"label": "b", "score": 0.5}, {"label": "a", "score": 0.501}, ""),
        ({"label": "a", "score": 0.5}, {"label": "a", "score": 0.6}, "score: 0.5 instead of 0.6"),
        ({"label": 1}, {"label": 2}, "label: '1' instead of '2'"),
        ({"scores": [0.1, 0.2]}, {"scores": [0.1, 0.2001]}, ""),
        ({"scores": [0.1, 0.2]}, {"scores": [0.2, 0.1]}, "scores: an array"),
        ({"scores": [0.1]}, {"scores": [0.1, 0.2]}, "scores: 1 values instead of 2"),
        ({"scores": [0.1, None]}, {"scores": [0.1, 0.2]}, "scores: an array"),
        ({"scores": [0.1, "x"]}, {"scores": [0.1, 0.2]}, "scores: value 1"),
        ({"scores": [math.nan]}, {"scores": [0.1]}, "scores: an array"),
        ({"embedding": [100.0, -3.0]}, {"embedding": [100.2, -3.0]}, ""),
        ({"text": "ab", "token_ids": [1, 2]}, {"text": "ac", "token_ids": [1, 3]}, ""),
        ({"text": "ab", "token_ids": [2, 2]}, {"text": "ac", "token_ids": [1, 3]}, "the tokens"),
        ({"text": "ab", "token_ids": [1]}, {"text": "ac", "token_ids": [1, 3]}, "the tokens"),
        ({"text": "ab", "token_ids": None}, {"text": "ac", "token_ids": [1, 3]}, "the tokens"),
        ({"text": "ab"}, {"text": "ac"}, "text: 'ab' instead of 'ac'"),
        ([{"label": "a", "score": 0.5}], [{"label": "a", "score": 0.9}], "value 0: score"),
        ({"a": 1}, {"b": 1}, "the keys"),
        (True, 1.0, "'True' instead of '1.0'"),
        (1, 1.0, ""),
        (None, {"a": 1}, "'None'"),
    ],
)
def test_what_counts_as_the_same_answer(answer: object, reference: object, found: str) -> None:
    said = difference(answer, reference, 0.005)
    assert said.startswith(found) if found else said == ""


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def test_arrays_are_compared_by_type_shape_and_value() -> None:
    fine = read(npy(np.array([0.1, 0.2], np.float16)))
    assert difference(read(npy(np.array([0.1, 0.201], np.float16))), fine, 0.005) == ""
    assert "off" in difference(read(npy(np.array([0.1, 0.3], np.float16))), fine, 0.005)
    assert "off" in difference(read(npy(np.array([0.1, math.nan], np.float16))), fine, 0.005)
    assert "instead" in difference(read(npy(np.array([[0.1, 0.2]], np.float16))), fine, 0.005)
    assert "other values" in difference(np.array([1]), np.array([2]), 0.005)
    assert difference([0.1, 0.2], fine, 0.005) == "list instead of ndarray"


def test_answers_that_hardly_differ_get_a_tighter_tolerance() -> None:
    assert tolerance([{"scores": [0.0, 1.0]}]) == 0.005
    assert tolerance([{"score": 0.500}, {"score": 0.501}]) == pytest.approx(0.0001)
    assert tolerance([{"score": 0.5}, {"score": 0.5}]) == 0.005
    assert tolerance([np.array([0.0, 0.01])]) == pytest.approx(0.001)


def test_references_are_recorded_and_tell_answers_apart(tmp_path: Path) -> None:
    bodies = [Request(b"x" * size, "text/plain") for size in (10, 20)]
    write_bodies(tmp_path / "bodies", bodies)
    with load_server(Manners(answer="echo", jitter=0.0003)) as (url, _):
        told = spec(base_url=url, bodies=tmp_path / "bodies", check="reference", references=tmp_path / "answers.json")
        assert record_references(replace(told, token="secret")) == tmp_path / "answers.json"
    answer = {"score": 1.0004, "type": "text/plain", "token": "Bearer secret"}
    for body, said, wrong in (
        (0, json.dumps(answer), ""),
        (0, json.dumps({**answer, "score": 2.0}), "score: 2.0 instead of 1.0"),
        (1, json.dumps(answer), "score: 1.0004 instead of 2.0"),
        (1, "", "an empty answer"),
        (1, "plain", "other bytes than recorded: plain"),
    ):
        found, compared = Judge(told, bodies).wrong(body, said.encode())
        assert found.startswith(wrong) if wrong else found == ""
        assert compared == bool(said)
    with pytest.raises(PreflightError, match="other payloads"):
        Judge(told, [Request(b"x", "text/plain"), bodies[1]])
    with pytest.raises(PreflightError, match="holds no recorded answers"):
        Judge(replace(told, references=tmp_path / "none.json"), bodies)


def test_comparing_numbers_is_given_up_before_it_is_what_is_measured(tmp_path: Path) -> None:
    rows = [[number / 5000 for number in range(5000)] for _ in range(2)]
    bodies = [Request(b"x", "")]
    write_bodies(tmp_path / "bodies", bodies)
    with load_server(Manners(answer=json.dumps({"scores": rows}))) as (url, _):
        told = spec(base_url=url, bodies=tmp_path / "bodies", check="reference", references=tmp_path / "answers.json")
        record_references(told)
    judge = Judge(told, bodies)
    same, other = json.dumps({"scores": rows}).encode(), json.dumps({"scores": [rows[0], rows[0][::-1]]}).encode()
    judged = [judge.wrong(0, other) for _ in range(100)]
    assert judged[0][0] and judged[0][1]  # the first is always compared
    assert sum(compared for _, compared in judged) < 60
    assert judge.wrong(0, same) == ("", True)


def test_references_of_a_server_that_does_not_answer_well(tmp_path: Path) -> None:
    write_bodies(tmp_path / "bodies", [Request(b"x", "")])
    told = spec(bodies=tmp_path / "bodies", references=tmp_path / "answers.json")
    with pytest.raises(NotReadyError, match=r"could be recorded from http://127.0.0.1:1/predictions/x"):
        record_references(told)
    with load_server(Manners(statuses=(507,))) as (url, _), pytest.raises(NotReadyError, match="answered 507"):
        record_references(replace(told, base_url=url))
    assert not (tmp_path / "answers.json").exists()


def test_payloads_of_people(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("b.json", "a.bin", ".hidden"):
        (tmp_path / "set" / name).write_text(name)
    (tmp_path / "one.json").write_text("{}")
    found = given_bodies([tmp_path / "set", tmp_path / "one.json"], None)
    assert [(one.body, one.content_type) for one in found] == [
        (b"a.bin", ""),
        (b"b.json", "application/json"),
        (b"{}", "application/json"),
    ]
    assert read_bodies(write_bodies(tmp_path / "written", found)) == found
    assert given_bodies([tmp_path / "written"], "text/plain") == found
    (tmp_path / "empty").mkdir()
    for paths, why in (([], "No payload"), ([tmp_path / "empty"], "no file"), ([tmp_path / "x"], "cannot be read")):
        with pytest.raises(PreflightError, match=why):
            given_bodies(paths, None)
    with pytest.raises(PreflightError, match="no payload to send"):
        write_bodies(tmp_path / "none", [Request(b"", "")])
    with pytest.raises(PreflightError, match="cannot be read"):
        read_bodies(tmp_path / "empty")


def test_counts_of_processes_become_one_result() -> None:
    tallies = [Tally(), Tally()]
    for number, tally in enumerate(tallies):
        tally.up = 2
        for _ in range(10):
            tally.answer(0.010, 0.5 + number)
        tally.answer(1.0, 2.5)  # after the counted time
        tally.error("503", "full " * 200)
    reports = [tally.report(0.5) for tally in tallies]
    found = result(CLOSED, json.loads(json.dumps(reports)), seconds=2.0, cpu=1.5, cores=4)
    assert (found.sent, found.answered, found.errors, found.per_second) == (24, 22, {"503": 2}, (10, 10))
    assert len(found.first_errors["503"]) == 500
    assert found.generator_cores == 0.75 and found.generator_limit == 4 and not found.void
    assert LoadResult.from_json(json.loads(json.dumps(found, default=lambda one: one.__dict__))) == found
    short = result(replace(CLOSED, connections=5), reports, seconds=2.0, cpu=0, cores=4)
    assert short.void == "Only 4 of 5 connections were at work when counting began: the warm-up is too short."


@pytest.mark.parametrize(
    ("latency", "late", "void"), [(0.01, 0.004, False), (0.01, 0.006, True), (0.1, 0.009, False), (0.1, 0.012, True)]
)
def test_a_generator_that_is_behind_makes_the_figures_void(latency: float, late: float, void: bool) -> None:
    tally = Tally()
    for number in range(100):
        tally.answer(latency, 0.5)
        tally.lateness.add(late if number >= 97 else 0.0)
    found = result(OPEN, [tally.report(0.0)], seconds=2.0, cpu=0.0, cores=1)
    assert found.behind_ms == pytest.approx(1000 * late, rel=0.01)
    assert found.void.startswith("The generator fell behind") is void


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"base_url": "localhost:8080"}, "http://"),
        ({"path": "predictions/x"}, "slash"),
        ({"processes": 0}, "less than one"),
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"check": "maybe"}, "no check 'maybe'"),
        ({"check": "reference"}, "needs a file"),
        ({"load": replace(CLOSED, kind="open")}, "no kind 'open'"),
        ({"load": replace(CLOSED, connections=0)}, "0 connections"),
        ({"load": replace(OPEN, rate=0.0)}, "0.0 requests per second"),
        ({"load": replace(OPEN, rate=math.inf)}, "inf requests"),
        ({"load": replace(CLOSED, seconds=0.0)}, "not a positive time"),
        ({"load": replace(CLOSED, warm_up=-1.0)}, "warm-up"),
    ],
)
def test_a_load_that_cannot_be_made_is_refused(changes: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        spec(**changes)


def test_a_spec_survives_json() -> None:
    told = spec(bodies=Path("/b"), check="reference", references=Path("/r"), token="t", load=OPEN)
    assert Spec.from_json(json.loads(json.dumps(told.as_json()))) == told


def test_workloads_are_found_by_name(tmp_path: Path) -> None:
    assert set(known()) >= {"text", "ranking", "images", "generation", "text-tiny"}
    for name in known():
        found = workload(name)
        assert (
            found.name == name and found.batch_sizes == tuple(sorted(found.batch_sizes)) and found.settings is not None
        )
        assert (found.preset == "tiny") is name.endswith("-tiny")
    assert workload("text").settings["batching.dtype"] == "fp16"
    assert workload("text-tiny").settings["batching.dtype"] == "fp32"
    assert workload("generation-tiny").settings["handler.max_new_tokens"] == 32
    with pytest.raises(UsageError, match=r"no workload 'txt'.*There are generation, .*text"):
        workload("txt")
    with pytest.raises(UsageError, match="installed without it"):
        workload("text", tmp_path)
    assert known(tmp_path) == ()


@pytest.mark.parametrize("name", ["text-tiny", "texts-tiny", "ranking-tiny", "images-tiny", "generation-tiny"])
def test_a_workload_is_built_with_its_bodies(tmp_path: Path, name: str) -> None:
    ready = prepare(workload(name), tmp_path / name)
    assert (ready.archive / "MAR-INF" / "MANIFEST.json").is_file()
    config = (ready.archive / "model-config.yaml").read_text()
    assert "minWorkers: 1" in config and f"maxBatchDelay: {workload(name).max_batch_delay}" in config
    if name == "generation-tiny":
        assert "stop_token_ids: []" in config and "max_new_tokens: 32" in config
    bodies = read_bodies(ready.bodies)
    assert len(bodies) >= 8 and ready.mean_bytes > 100 and bodies[0].content_type
    again = prepare(workload(name), tmp_path / name)
    assert again == ready and read_bodies(again.bodies) == bodies


def test_a_workload_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="cannot be built") as caught:
        prepare(replace(workload("text-tiny"), preset="huge"), tmp_path)
    assert "invalid choice" in caught.value.details


def test_nothing_patches_the_process_that_asks_for_a_load() -> None:
    code = "import sys, ts_mps.bench.load; print([name for name in ('gevent', 'locust') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Files that are no studies are refused in a sentence."""

import json

import pytest
from benching import arm, run, study

from ts_mps.bench.report.reading import read_study
from ts_mps.errors import PreflightError


def written(tmp_path, value):
    path = tmp_path / "study.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_what_was_written_is_read_back(tmp_path):
    failed = run(arm(), 2, failure="The port 8080 is taken.", details="one\ntwo")
    whole = study([(arm(), 100.0), (arm(4, mps=True, thread_percentage=50.0), 200.0)], blocks=2, runs=[failed])
    assert read_study(written(tmp_path, whole.as_json())) == whole


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "it is not JSON"),
        ("{", "it is not JSON"),
        ("[]", "it holds no JSON object"),
        ("{}", "it is of version None"),
        ('{"version": 99}', "it is of version 99, this ts-mps reads version 1"),
        ('{"version": 1}', "it is not a study"),
        ('{"version": NaN}', "it holds NaN, which is no number"),
        ('{"version": 1e999}', "it holds 1e999, which is too large"),
        ("[" * 100_000, "nested too deeply"),
    ],
    ids=lambda value: value[:12],
)
def test_no_study(tmp_path, text, reason):
    with pytest.raises(PreflightError, match=reason) as caught:
        read_study(written(tmp_path, text))
    assert "study.json" in caught.value.what
    assert caught.value.remedy


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(PreflightError, match="cannot be read: No such file"):
        read_study(tmp_path / "missing.json")
    with pytest.raises(PreflightError, match="cannot be read: Is a directory"):
        read_study(tmp_path)
    (tmp_path / "binary").write_bytes(b"\x80\x81")
    with pytest.raises(PreflightError, match="not even text"):
        read_study(tmp_path / "binary")


def change(value, *way, to):
    for key in way[:-1]:
        value = value[key]
    value[way[-1]] = to


@pytest.mark.parametrize(
    "way, to, reason",
    [
        (("runs", 0, "arm"), "another", "run 0 is of the arm 'another', which the study does not have"),
        (("runs", 0, "result", "load", "seconds"), 0.0, "run 0 lasted 0 seconds"),
        (("runs", 0, "result", "answered"), -1, "run 0 counts fewer than no requests"),
        (("runs", 0, "result", "answered"), "many", r"runs.0.result.answered: input should be a valid integer"),
        (("runs", 0, "result", "histogram", "counts"), [[10**9, 1]], "a bucket that there is not"),
        (("runs", 0, "result", "histogram"), "x", "it is not a study|study that can be shown"),
        (("runs", 0, "samples"), 5, "it is not a study"),
        (("arms", 1, "name"), "1 worker x 8, MPS off", "two arms of the name"),
        (("settings", "slo_ms"), "fast", "its setting slo_ms is 'fast'"),
        (("machine",), [], "machine: "),
        (("runs", 0, "result", "load", "connections"), 8, "its closed loops had 8 and 64 connections"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_study_that_contradicts_itself(tmp_path, way, to, reason):
    value = json.loads(json.dumps(study(blocks=1).as_json()))
    change(value, *way, to=to)
    with pytest.raises(PreflightError, match=reason):
        read_study(written(tmp_path, value))


def test_control_characters_become_spaces_but_logs_keep_their_lines(tmp_path):
    name = "evil\x1b[31m\x00\ud800 arm"
    one = arm(name=name)
    whole = study(runs=[run(one, failure="no\nport", details="first\nsecond\x07")], arms=(one,))
    (found,) = read_study(written(tmp_path, whole.as_json())).runs
    assert (found.arm, found.failure, found.details) == ("evil [31m  arm", "no port", "first\nsecond ")

"""``ts-mps.toml``: what it may say, and each thing that it may not, with file, table and key in the sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ts_mps.errors import PreflightError, UsageError
from ts_mps.plan.facts import Policy, WorkerWish
from ts_mps.settings import (
    MODEL_KEYS,
    PLAN_KEYS,
    MemorySettings,
    ModelSettings,
    Settings,
    find_settings,
    read_settings,
)

ROOT = Path(__file__).parents[2]
UUID = "GPU-00000000-0000-4000-8000-000000000000"


@pytest.fixture
def read(tmp_path):
    def read_text(text: str) -> Settings:
        path = tmp_path / "ts-mps.toml"
        path.write_text(text)
        return read_settings(path)

    return read_text


def test_the_example_shows_the_defaults():
    settings = read_settings(ROOT / "config/ts-mps.toml")
    assert (settings.policy, settings.mps, settings.models) == (Policy(), "auto", {})
    assert settings.given == set(PLAN_KEYS) - {"percentage"}  # it has no default


def test_every_key_of_the_example_can_be_switched_on(read):
    text = (ROOT / "config/ts-mps.toml").read_text()
    switched_on = re.sub(r"^# (\[models|\w+ = )", r"\1", text, flags=re.MULTILINE)
    settings = read(switched_on.replace('percentages = "none"', 'percentages = "fixed"'))
    assert settings.given == set(PLAN_KEYS) and settings.policy.percentage == 50
    (model,) = settings.models.values()
    unset = [key for key in MODEL_KEYS if getattr(model, key) == getattr(ModelSettings(), key)]
    assert unset == ["weight"]  # the example shows its default


@pytest.mark.parametrize("page", ["config/ts-mps.toml", "docs/reference/settings.md"])
def test_every_key_is_explained(page):
    text = (ROOT / page).read_text()
    for key in (*PLAN_KEYS, *MODEL_KEYS):
        assert re.search(rf"(^|# ){key} = |`{key}`", text, re.MULTILINE), f"{page}: {key}"


def test_no_file_is_all_defaults():
    assert read_settings(None) == Settings()


def test_a_whole_file(read, tmp_path):
    settings = read(
        f"""
        [plan]
        reserve = 2
        memory_margin = 0.1
        cores_per_worker = 0.5
        percentages = "fixed"
        percentage = 40
        least_gain = 0
        mps = "on"
        [models.bert]
        workers = "2-8"
        weight = 3
        batch_size = 8
        profile = "profiles/bert.json"
        memory = {{context = "520 MiB", weights = 440401920, peak = "1.5 GiB"}}
        gpus = [0, "{UUID}"]
        thread_percentage = 12.5
        memory_limit = "3 GiB"
        priority = "below-normal"
        [models."the.other one"]
        """
    )
    path = tmp_path / "ts-mps.toml"
    assert settings == Settings(
        Policy(2, 0.1, 0.5, "fixed", 40.0, 0.0),
        "on",
        {
            "bert": ModelSettings(
                WorkerWish(2, 8, f"workers in {path}: [models.bert]"),
                3.0,
                8,
                tmp_path / "profiles/bert.json",
                MemorySettings(520 * 2**20, 440401920, 3 * 2**29),
                (0, UUID),
                12.5,
                3 * 2**30,
                1,
            ),
            "the.other one": ModelSettings(),
        },
        path,
        frozenset(PLAN_KEYS),
    )


@pytest.mark.parametrize(
    ("written", "least", "most"),
    [
        ("4", 4, 4),
        ("0", 0, 0),
        ('"auto"', 1, None),
        ('"2-8"', 2, 8),
        ('"2 - 2"', 2, 2),
        ("{min = 2, max = 8}", 2, 8),
        ("{min = 2}", 2, None),
        ("{max = 8}", 1, 8),
        ("{}", 1, None),
    ],
)
def test_workers(read, written, least, most):
    wish = read(f"[models.m]\nworkers = {written}").models["m"].workers
    assert (wish.least, wish.most) == (least, most)


@pytest.mark.parametrize(
    ("written", "size"),
    [('"1KiB"', 2**10), ('"0.5 GiB"', 2**29), ('" 2 TiB "', 2**41), ('"7 B"', 7), ("1_000", 1000), ('"0 B"', 0)],
)
def test_sizes(read, written, size):
    assert read(f"[models.m]\nmemory = {{peak = {written}}}").models["m"].memory == MemorySettings(peak=size)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("[plam]", "has the unknown key 'plam'. Did you mean 'plan'?"),
        ("[model.bert]", "has the unknown key 'model'. Did you mean 'models'?"),
        ("[plan]\nreserves = 1", "[plan] has the unknown key 'reserves'. Did you mean 'reserve'?"),
        ("[plan]\nxyz = 1", "Known keys: mps, reserve"),
        ("[models.m]\nworker = 1", "[models.m] has the unknown key 'worker'. Did you mean 'workers'?"),
        ("[models.m]\nmemory = {weight = 1}", "[models.m] memory has the unknown key 'weight'"),
        ("[models.m]\nworkers = {mim = 1}", "workers has the unknown key 'mim'. Did you mean 'min'?"),
        ("plan = 1", "[plan] is 1; it must be a table"),
        ("models = []", "models is []"),
        ("models = {m = 1}", "[models.m] is 1; it must be a table"),
        ("[plan]\nreserve = -1", "[plan] reserve is -1; it must be a whole number from 0"),
        ("[plan]\nreserve = 1.0", "reserve is 1.0"),
        ("[plan]\nreserve = true", "reserve is true"),
        ("[plan]\nreserve = 100000", "reserve is 100000"),
        ("[plan]\nmemory_margin = 1", "memory_margin is 1; it must be a number from 0 and below 1"),
        ("[plan]\nmemory_margin = nan", "memory_margin is nan"),
        ("[plan]\ncores_per_worker = inf", "cores_per_worker is inf"),
        ("[plan]\ncores_per_worker = -0.5", "cores_per_worker is -0.5"),
        (f"[plan]\ncores_per_worker = {'9' * 400}", "cores_per_worker is 9999"),
        ('[plan]\npercentages = "evn"', 'percentages is \'evn\'; it must be one of "none", "even"'),
        ('[plan]\npercentages = ["even"]', "percentages is ['even']"),
        ('[plan]\npercentages = "fixed"', 'has percentages = "fixed" and no percentage'),
        ("[plan]\npercentage = 50", 'only counts with percentages = "fixed" (it is "none")'),
        ('[plan]\npercentages = "even"\npercentage = 50', '(it is "even")'),
        ('[plan]\npercentages = "fixed"\npercentage = 0', "percentage is 0; it must be a number above 0 and up to 100"),
        ('[plan]\npercentages = "fixed"\npercentage = 100.5', "percentage is 100.5"),
        ('[plan]\npercentages = "fixed"\npercentage = true', "percentage is true"),
        ("[plan]\nleast_gain = 3", "least_gain is 3"),
        ('[plan]\nleast_gain = "3 %"', "least_gain is '3 %'"),
        ("[plan]\nmps = true", 'mps is true; it must be one of "auto", "on", "off"'),
        ("[models.m]\nworkers = -1", "workers is -1"),
        ("[models.m]\nworkers = 1000000", "workers is 1000000"),
        ("[models.m]\nworkers = 2.5", "workers is 2.5"),
        ("[models.m]\nworkers = true", "workers is true"),
        ('[models.m]\nworkers = "many"', "workers is 'many'; it must be a number"),
        ('[models.m]\nworkers = "0-2"', "workers is '0-2'"),
        ('[models.m]\nworkers = "2-999999"', "workers is '2-999999'"),
        ('[models.m]\nworkers = "8-2"', "workers wants at least 8 and at most 2 workers"),
        ("[models.m]\nworkers = {min = 8, max = 2}", "workers wants at least 8 and at most 2 workers"),
        ("[models.m]\nworkers = {min = 0}", "workers min is 0"),
        ("[models.m]\nweight = 0", "weight is 0; it must be a number above 0"),
        ("[models.m]\nweight = -1", "weight is -1"),
        ("[models.m]\nbatch_size = 0", "batch_size is 0"),
        ('[models.m]\nprofile = ""', "profile is ''"),
        ("[models.m]\nprofile = 1", "profile is 1"),
        ("[models.m]\nmemory = 1", "memory is 1; it must be a table"),
        ('[models.m]\nmemory = {peak = "-1 GiB"}', "memory peak is '-1 GiB'"),
        ('[models.m]\nmemory = {peak = "1 GB"}', "memory peak is '1 GB'; it must be a size"),
        ('[models.m]\nmemory = {peak = "nan GiB"}', "memory peak is 'nan GiB'"),
        ('[models.m]\nmemory = {peak = "inf GiB"}', "memory peak is 'inf GiB'"),
        ('[models.m]\nmemory = {peak = "1025 TiB"}', "memory peak is '1025 TiB'"),
        ("[models.m]\nmemory = {peak = 1.5}", "memory peak is 1.5"),
        ("[models.m]\ngpus = []", "gpus is []; it must be a list of at least one GPU"),
        ("[models.m]\ngpus = 0", "gpus is 0; it must be a list"),
        ("[models.m]\ngpus = [0, 0]", "(0 is twice)"),
        ("[models.m]\ngpus = [-1]", "gpus is [-1]"),
        ("[models.m]\ngpus = [true]", "gpus is [True]"),
        ('[models.m]\ngpus = ["GPU-1"]', "gpus is ['GPU-1']"),
        ("[models.m]\nthread_percentage = 0", "thread_percentage is 0"),
        ("[models.m]\nthread_percentage = 101", "thread_percentage is 101"),
        ("[models.m]\nmemory_limit = 0", "memory_limit is 0"),
        ("[models.m]\nmemory_limit = '2 PiB'", "memory_limit is '2 PiB'"),
        ("[models.m]\npriority = 1", 'priority is 1; it must be one of "normal", "below-normal"'),
        ("[plan\n", "is not TOML"),
        ("[plan]\nreserve = 1\nreserve = 2", "is not TOML"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(read, tmp_path, written, says):
    with pytest.raises(PreflightError) as caught:
        read(written)
    assert says in str(caught.value) and str(tmp_path / "ts-mps.toml") in caught.value.what
    assert len(caught.value.what) < 400


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe[plan]")
    with pytest.raises(PreflightError, match="is not TOML"):
        read_settings(tmp_path / "s.toml")
    with pytest.raises(PreflightError, match="cannot be read: Is a directory"):
        read_settings(tmp_path)


def test_a_missing_file_is_the_users_error(tmp_path):
    with pytest.raises(UsageError, match=r"missing\.toml does not exist"):
        read_settings(tmp_path / "missing.toml")


def test_which_file_counts(tmp_path):
    assert find_settings(None, {}, tmp_path) is None
    (tmp_path / "ts-mps.toml").touch()
    assert find_settings(None, {}, tmp_path) == tmp_path / "ts-mps.toml"
    assert find_settings(None, {"TS_MPS_SETTINGS": ""}, tmp_path) == tmp_path / "ts-mps.toml"
    assert find_settings(None, {"TS_MPS_SETTINGS": "/etc/b.toml"}, tmp_path) == Path("/etc/b.toml")
    assert find_settings("c.toml", {"TS_MPS_SETTINGS": "/etc/b.toml"}, tmp_path) == tmp_path / "c.toml"

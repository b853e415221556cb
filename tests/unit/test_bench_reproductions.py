"""The published studies that are measured again: what they hold, and how the command goes through them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benching import result, run, study
from handling import build_module

from ts_mps.bench.arms import ENGINES
from ts_mps.bench.reproductions import REPRODUCTIONS, Ground, Planned, databricks, results, torchserve_guide, vivo
from ts_mps.bench.study import StudyFile
from ts_mps.cli.bench_options import parser
from ts_mps.cli.bench_reproduce import reproduce

ROOT = Path(__file__).parents[2]
GPU, TINY = Ground(tiny=False, cores=12), Ground(tiny=True, cores=1)
EVERY = [part for make in REPRODUCTIONS.values() for ground in (GPU, TINY) for part in make(ground)]


def named(part: Planned) -> list[str]:
    return [arm.name for arm in part.arms]


@pytest.mark.parametrize("part", EVERY, ids=lambda part: f"{part.name}-{len(part.arms)}")
def test_every_study_can_be_made(part):
    names = named(part)
    assert len(set(names)) == len(names) >= 2 and part.blocks >= 1
    assert part.expected_seconds > part.runs * (part.seconds + part.warm_up)
    assert all(
        arm.engine in ENGINES and arm.options == {"max_batch_delay": str(part.workload.max_batch_delay)}
        for arm in part.arms
    )
    assert (ROOT / "handlers" / "build" / f"{part.workload.script}.py").is_file()
    assert not part.workload.handler or (ROOT / part.workload.handler).is_file()
    assert part.connections >= max(arm.workers * arm.batch_size for arm in part.arms), "batches can be full"


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_names_of_files_are_unique_and_tiny_ones_need_no_gpu(name):
    for ground in (GPU, TINY):
        names = [part.name for part in REPRODUCTIONS[name](ground)]
        assert len(set(names)) == len(names)
    for part in REPRODUCTIONS[name](TINY):
        assert {arm.device for arm in part.arms} == {"cpu"} and not any(arm.mps for arm in part.arms)
        assert part.expected_seconds < 300 and "tiny" in part.title


def test_the_results_ask_whether_mps_pays_and_which_engine_serves_best():
    parts = results(GPU)
    assert [part.name for part in parts] == ["text", "ranking", "images", "generation"]
    for part in parts:
        assert part.blocks == 6, "fewer pairs allow no verdict"
        cells = {(arm.engine, arm.workers, arm.mps) for arm in part.arms}
        with_mps = {(engine, 4, mps) for engine in ("ts-mps", "litserve") for mps in (False, True)}
        assert cells == {*with_mps, ("torchserve", 1, False), ("torchserve", 4, False)}
        assert len({arm.batch_size for arm in part.arms}) == 1


def test_the_guides_study_is_the_guides():
    stock, ours = torchserve_guide(GPU)
    for part in (stock, ours):
        served = [arm for arm in part.arms if not arm.noop]
        assert sorted({arm.batch_size for arm in served}) == [1, 2, 4, 8, 16, 32]
        assert {(arm.workers, arm.mps) for arm in served} == {(1, False), (2, False), (2, True)}
        assert (len(served), part.blocks, part.connections) == (18, 6, 600)
        assert part.workload.settings["batching.dtype"] == "fp32"
    assert {arm.engine for arm in stock.arms} == {"torchserve"} and "naive" in stock.workload.handler
    assert {arm.engine for arm in ours.arms} == {"ts-mps"} and not ours.workload.handler


def test_two_engines_share_the_batch_of_one():
    parts = databricks(GPU)
    assert len(parts) == 4 * 4
    for part in parts:
        one, two, both = part.arms
        assert (one.workers, two.workers, both.workers) == (1, 2, 2) and (one.mps, two.mps, both.mps) == (0, 0, 1)
        assert one.batch_size == 2 * two.batch_size == 2 * both.batch_size
        (length,), out = part.workload.settings["batching.lengths"], part.workload.settings["handler.max_new_tokens"]
        assert part.workload.sizes == {"tokens": length, "generated": out}
    presets = [part.workload.preset for part in parts]
    assert presets == sorted(presets), "studies of one model follow one another"
    assert {(p.workload.sizes["tokens"], p.workload.sizes["generated"]) for p in parts} == {
        (128, 1),
        (512, 1),
        (2048, 1),
        (64, 256),
    }


def test_the_shapes_are_those_of_the_published_models(monkeypatch):
    """Weights by the published numbers of parameters, without making one."""
    import torch
    import transformers

    module = build_module("text_generator")
    made: dict[str, int] = {}
    monkeypatch.setattr(module, "_tokenizer", lambda folder: 257)
    monkeypatch.setattr(
        transformers.Qwen2ForCausalLM,
        "save_pretrained",
        lambda self, folder: made.update({str(folder): sum(weight.numel() for weight in self.parameters())}),
    )
    for part in databricks(GPU)[::4]:
        with torch.device("meta"):
            module.PRESETS[part.workload.preset](Path(part.workload.preset))
    # "Number of Parameters" of the model cards of Qwen2.5: 0.49B, 1.54B, 3.09B, 7.61B (cut, not rounded).
    assert [round(count / 1e9, 2) for count in made.values()] == [0.49, 1.54, 3.09, 7.62]


def test_ranking_is_set_against_servers_without_a_gpu():
    (part,) = vivo(GPU)
    served = [arm for arm in part.arms if not arm.noop]
    assert [(arm.workers, arm.mps) for arm in served if arm.device == "gpu"] == [(1, False), (4, True), (8, True)]
    assert [(arm.workers, arm.mps) for arm in served if arm.device == "cpu"] == [(1, False), (6, False), (12, False)]


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """`--reproduce databricks --tiny` whose studies are played: the list of their files, as they are measured."""
    from ts_mps.cli import bench_reproduce, bench_run

    done: list[Path] = []

    def play(make, place, output, before, caught):
        part = make.args[2]
        done.append(output)
        runs = [run(arm, measured=result()) for arm in part.arms]
        settings = {"seconds": part.seconds, "warm_up": part.warm_up, "connections": part.connections}
        settings |= {"timeout": 60.0, "search": None}
        made = study(runs=runs, arms=part.arms, kind="databricks", title=part.title, blocks=part.blocks, seed=0)
        file = StudyFile(output, replace(made, settings=settings, incomplete="It broke." if len(done) == 2 else ""))
        file.save()
        return file

    monkeypatch.setattr(bench_reproduce, "measure", play)
    monkeypatch.setattr(bench_run, "show_headline", lambda study: None)
    monkeypatch.chdir(tmp_path)
    return done


def command(*words: str) -> int:
    return reproduce(parser().parse_args(["--reproduce", "databricks", "--tiny", "-o", "out", *words]))


def test_finished_studies_are_not_measured_again(measured, capsys):
    names = ["databricks-tiny-prefill-32.json", "databricks-tiny-decode.json"]
    assert command() == 0
    assert [file.name for file in measured] == names
    told = capsys.readouterr().err
    assert "Studies: 2, 4 runs, about 86 s" in told and told.index("about 86 s") < told.index("Two engines against one")
    measured.clear()
    assert command("--json") == 0
    assert [file.name for file in measured] == names[1:], "the one that was broken off"
    seen = capsys.readouterr()
    assert "1 of 2 studies are finished" in seen.err
    assert [one["kind"] for one in json.loads(seen.out)["studies"]] == ["databricks"] * 2
    measured.clear()
    assert command("--force", "--part", "databricks-tiny-decode") == 0
    assert [file.name for file in measured] == names[1:]


BAD = {
    "other settings": (("--seconds", "3"), "with other settings or arms than this call's"),
    "another seed": (("--seed", "4"), "with other settings or arms than this call's"),
    "an objective": (("--slo-ms", "9"), "with other settings or arms than this call's"),
    "what it decides": (("--percentages", "50"), "--percentages does not go with --reproduce databricks"),
    "workers that no arm has": (("--workers", "3"), "--workers 3: no such arm is left of databricks-tiny-prefill-32"),
    "numbers that no arm has together": (
        ("--workers", "1,2", "--batch-sizes", "2"),
        "--workers 1: no such arm is left of databricks-tiny-prefill-32. The workers and batch sizes of its arms are "
        "1 x 4, 2 x 2.",
    ),
    "other arms": (("--workers", "2"), "with other settings or arms than this call's"),
    "another model": (("--workload", "text"), "--workload does not go with"),
    "a part that is none": (("--part", "x"), "There are databricks-tiny-prefill-32, databricks-tiny-decode"),
}


@pytest.mark.parametrize(("words", "sentence"), BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_refused_and_nothing_is_overwritten(measured, words, sentence):
    from ts_mps.errors import TsMpsError

    assert command() == 0
    files = {file: file.read_bytes() for file in measured}
    measured.clear()
    with pytest.raises(TsMpsError) as caught:
        command(*words)
    assert sentence in f"{caught.value.what} {caught.value.remedy}"
    assert measured == [] and all(file.read_bytes() == before for file, before in files.items())


def test_some_of_its_arms_can_be_measured_alone(measured):
    assert command("--workers", "2", "--batch-sizes", "2") == 0
    (first, *_) = measured
    made = json.loads(first.read_text())
    assert {(arm["workers"], arm["batch_size"]) for arm in made["arms"]} == {(2, 2)}
    assert made["title"].endswith("(some of its arms)"), "its report must not look like the whole study's"


def test_its_options_go_with_it_only(capsys):
    from ts_mps.cli.main import main

    assert main(["bench", "compare", "--tiny", "--workload", "text"]) == 2
    assert "--tiny goes with --reproduce only" in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_is_a_file_is_refused(measured, capsys, tmp_path):
    from ts_mps.errors import PreflightError

    (tmp_path / "out").write_text("")
    with pytest.raises(PreflightError, match="cannot be made"):
        command()

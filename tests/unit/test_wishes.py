"""What is wished for each model, and what is refused because it contradicts itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import pack

from ts_mps.errors import PlanError, PreflightError
from ts_mps.guardian.wishes import model_facts, profile_beside
from ts_mps.plan.estimate import estimate_memory
from ts_mps.plan.facts import GpuFacts, ModelFacts, WorkerWish
from ts_mps.plan.profile import BatchRun, Profile, ScaleRun
from ts_mps.settings import read_settings
from ts_mps.torchserve.digest import content_digest
from ts_mps.torchserve.models import ModelRequest
from ts_mps.torchserve.registration import Number

GIB = 2**30
MIB = 2**20
GPUS = tuple(
    GpuFacts(index, f"GPU-{index:08x}-0000-4000-8000-000000000000", "NVIDIA H200", 140 * GIB) for index in (0, 1)
)
DEFAULT = Number(2, "TorchServe's default, one for each GPU", chosen=False)


def request(store: Path, name: str = "bert", **more) -> ModelRequest:
    archive = store / f"{name}.mar"
    pack(archive, name)
    workers = more.pop("asked", DEFAULT)
    return ModelRequest(
        name,
        "1.0",
        more.pop("archive", archive),
        archive.name,
        workers.value,
        workers.value,
        more.pop("device_type", "gpu"),
        asked=workers,
        **{"weights": GIB, **more},
    )


def facts(model: ModelRequest, toml: str = "", gpus: tuple[GpuFacts, ...] = GPUS, *, auto: bool = False) -> ModelFacts:
    path = None
    if toml and model.archive:
        path = model.archive.parent / "ts-mps.toml"
        path.write_text(toml)
    (one,) = model_facts([model], read_settings(path), gpus, auto=auto)
    return one


def profile(archive: Path, batch: int = 1, **more) -> Profile:
    run = BatchRun(batch, None, 132, 10.0, 9.0, 11.0, 5.0, 50, 519 * MIB, 400 * MIB, 100 * MIB)
    values = {"model": "bert", "archive": archive.name, "sha256": content_digest(archive), "gpu": "NVIDIA H200", **more}
    scaling = (ScaleRun(1, True, batch, 90.0, 89.0, 91.0),)
    return Profile(sms=132, runs=(run,), scaling=scaling, gap_milliseconds=0.4, machine={}, **values)


def write(path: Path, value: Profile) -> None:
    path.write_text(json.dumps(value.as_json()))


class TestWorkers:
    def test_a_start_as_before_is_fixed_at_what_torchserve_would_start(self, tmp_path):
        wish = facts(request(tmp_path)).workers
        assert wish == WorkerWish(2, 2, DEFAULT.source) and wish.fixed

    def test_auto_decides_only_what_nobody_set(self, tmp_path):
        assert facts(request(tmp_path), auto=True).workers == WorkerWish(1, None, "auto")
        chosen = Number(3, "minWorkers of its model-config.yaml")
        assert facts(request(tmp_path, asked=chosen), auto=True).workers == WorkerWish(3, 3, chosen.source)

    def test_the_flag_beats_the_settings_and_they_beat_the_archive(self, tmp_path):
        toml = '[models.bert]\nworkers = "2-8"'
        archive = Number(3, "minWorkers of its model-config.yaml")
        wish = facts(request(tmp_path, asked=archive), toml).workers
        assert (wish.least, wish.most) == (2, 8) and "[models.bert]" in wish.source
        assert facts(request(tmp_path, asked=Number(5, "--workers")), toml).workers == WorkerWish(5, 5, "--workers")
        auto = facts(request(tmp_path, asked=archive), '[models.bert]\nworkers = "auto"').workers
        assert (auto.least, auto.most) == (1, None)

    def test_workers_over_several_gpus_are_not_the_planners(self, tmp_path):
        model = request(tmp_path, parallel=True)
        one = facts(model, auto=True)
        assert one.workers.fixed and not one.on_gpu
        with pytest.raises(PlanError, match="spreads each worker over several GPUs"):
            facts(model, '[models.bert]\nworkers = "auto"')


class TestMemory:
    def test_estimated_from_the_archive(self, tmp_path):
        assert facts(request(tmp_path)).memory == estimate_memory(GIB)

    def test_the_settings_beat_the_estimate_part_by_part(self, tmp_path):
        part = facts(request(tmp_path), '[models.bert]\nmemory = {weights = "2 GiB"}').memory
        assert (part.weights, part.peak, part.source) == (2 * GIB, GIB, "estimate")
        whole = facts(request(tmp_path), '[models.bert]\nmemory = {weights = "2 GiB", peak = "1 MiB"}').memory
        assert (whole.context, whole.weights, whole.peak) == (520 * MIB, 2 * GIB, MIB) and whole.source == "config"

    def test_nothing_is_known_of_an_archive_that_is_not_there_yet(self, tmp_path):
        assert facts(request(tmp_path, archive=None, weights=0)).memory is None

    def test_the_cpu_needs_none(self, tmp_path):
        model = request(tmp_path, device_type="cpu")
        one = facts(model)
        assert one.memory is None and not one.on_gpu
        assert facts(request(tmp_path, device_type="cpu"), gpus=()).memory is None


class TestProfiles:
    def test_one_that_the_settings_name_is_measured_memory(self, tmp_path):
        model = request(tmp_path)
        write(tmp_path / "here.json", profile(model.archive))
        one = facts(model, '[models.bert]\nprofile = "here.json"\nmemory = {weights = "9 GiB", peak = "9 GiB"}')
        assert one.profile == profile(model.archive)
        assert (one.memory.total, one.memory.source) == ((519 + 400 + 100) * MIB, "profile")

    def test_one_beside_the_archive_counts_where_there_is_something_to_decide(self, tmp_path):
        model = request(tmp_path)
        write(tmp_path / "bert.profile.json", profile(model.archive))
        assert facts(model, auto=True).profile is not None
        assert facts(model, '[models.bert]\nworkers = "1-4"').profile is not None
        assert facts(model).profile is None
        assert profile_beside(Path("/store/m-1.tar.gz")) == Path("/store/m-1.profile.json")

    def test_one_of_another_model_is_refused(self, tmp_path):
        model = request(tmp_path)
        write(tmp_path / "bert.profile.json", profile(request(tmp_path, "other").archive, model="other"))
        with pytest.raises(PlanError, match=r"of another model: other as it was in other\.mar") as caught:
            facts(model, auto=True)
        assert caught.value.exit_code == 4 and "ts-mps profile" in caught.value.remedy
        changed = profile(model.archive)
        pack(model.archive, "other weights")
        write(tmp_path / "bert.profile.json", changed)
        with pytest.raises(PlanError, match="is not the same"):
            facts(model, auto=True)

    def test_one_that_is_not_there_or_is_none_is_refused(self, tmp_path):
        model, toml = request(tmp_path), '[models.bert]\nprofile = "here.json"'
        with pytest.raises(PreflightError, match=r"here\.json cannot be read: No such file"):
            facts(model, toml)
        for text in ("[]", "{", "[" * 100_000, '{"version": 99}', '{"version": 1}'):
            (tmp_path / "here.json").write_text(text)
            with pytest.raises(PreflightError, match=r"here\.json cannot be used"):
                facts(model, toml)

    def test_one_of_the_cpu_says_nothing_of_a_gpu(self, tmp_path):
        model = request(tmp_path)
        write(tmp_path / "bert.profile.json", profile(model.archive, gpu="CPU"))
        with pytest.raises(PlanError, match="was measured on a CPU"):
            facts(model, auto=True)
        on_cpu = facts(model, gpus=(), auto=True).profile
        assert on_cpu is not None and on_cpu.gpu == "CPU"

    def test_one_of_a_gpu_says_nothing_of_a_cpu(self, tmp_path):
        model = request(tmp_path)
        write(tmp_path / "bert.profile.json", profile(model.archive))
        assert facts(model, auto=True).profile is not None
        assert facts(model, gpus=(), auto=True).profile is None
        pack(model.archive, "other weights")
        assert facts(model, gpus=(), auto=True).profile is None, "of whatever archive it is"


class TestContradictions:
    def test_a_model_that_is_not_loaded_is_refused_with_the_nearest(self, tmp_path):
        with pytest.raises(PreflightError, match="speaks of the model brt, which is not loaded") as caught:
            facts(request(tmp_path), "[models.brt]\nweight = 2")
        assert caught.value.remedy == "Did you mean bert?"
        with pytest.raises(PreflightError) as caught:
            facts(request(tmp_path), "[models.ranker]\nweight = 2")
        assert caught.value.remedy == "Loaded: bert."

    def test_a_batch_size_that_torchserve_will_not_use(self, tmp_path):
        batch = Number(4, "batchSize of its model-config.yaml")
        with pytest.raises(
            PlanError, match="plan for batches of 8 of model bert, and TorchServe will make batches of 4"
        ):
            facts(request(tmp_path, batch=batch), "[models.bert]\nbatch_size = 8")
        assert facts(request(tmp_path, batch=batch), "[models.bert]\nbatch_size = 4").batch_size == 4

    def test_gpus_are_named_by_index_or_uuid(self, tmp_path):
        one = facts(request(tmp_path), f'[models.bert]\ngpus = [1, "{GPUS[0].uuid}", "{GPUS[1].uuid}"]')
        assert one.gpus == (GPUS[1].uuid, GPUS[0].uuid)
        with pytest.raises(PlanError, match="on GPU 2, which is not in use"):
            facts(request(tmp_path), "[models.bert]\ngpus = [0, 2]")

    def test_device_ids_and_the_settings_must_agree(self, tmp_path):
        model = request(tmp_path, device_ids=(0, 1))
        with pytest.raises(PlanError, match="deviceIds of model bert put it on GPU 0"):
            facts(model, "[models.bert]\ngpus = [1]")
        assert facts(model, "[models.bert]\ngpus = [1, 0]").device_ids == (0, 1)

    def test_limits_reach_the_planner(self, tmp_path):
        toml = '[models.bert]\nweight = 2\nthread_percentage = 25\nmemory_limit = "3 GiB"\npriority = "below-normal"'
        one = facts(request(tmp_path), toml)
        assert (one.weight, one.thread_percentage, one.memory_limit, one.priority) == (2.0, 25.0, 3 * GIB, 1)

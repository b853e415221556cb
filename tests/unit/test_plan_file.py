"""A plan from a file is used where it was made for, and refused elsewhere with the difference."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ts_mps.errors import PlanError, UsageError
from ts_mps.guardian.choice import MpsChoice
from ts_mps.guardian.plan_file import check_arguments, fit, read_plan, short_memory
from ts_mps.guardian.planning import decide
from ts_mps.guardian.site import Site
from ts_mps.plan.facts import GpuFacts, HostFacts
from ts_mps.plan.model import Plan
from ts_mps.settings import Settings
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.models import ModelRequest
from ts_mps.torchserve.registration import Number

GIB = 2**30
FILE = Path("plan.json")


def gpu(index: int = 0, **more) -> GpuFacts:
    uuid = f"GPU-{index:08x}-0000-4000-8000-000000000000"
    facts = GpuFacts(index, uuid, "NVIDIA H200", 140 * GIB, 0, 132, (), 48, "control binary 13000", 0, "/away/pipe")
    return dataclasses.replace(facts, **more)


def site(*gpus: GpuFacts, cores: int = 16, **more) -> Site:
    return Site(gpus or (gpu(0), gpu(1)), HostFacts(tuple(range(cores)), **more))


def model(name: str = "bert", version: str = "1.0", workers: int = 4, **more) -> ModelRequest:
    asked = Number(workers, "--workers")
    archive = Path(f"/store/{name}.mar")
    return ModelRequest(name, version, archive, archive.name, workers, 1, "gpu", asked=asked, weights=GIB, **more)


def made(where: Site | None = None, *models: ModelRequest, mps: bool = True) -> Plan:
    choice = MpsChoice(mps, "as the test says", None, 13000)
    return decide(where or site(), models or (model(),), choice, Settings(), StartArguments(), auto=False)


def stored(folder: Path, plan: Plan) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps(plan.as_json()))
    return path


def test_read_back_as_it_was_made(tmp_path):
    for plan in (made(), made(mps=False), made(Site((), HostFacts((0, 1))))):
        assert read_plan(stored(tmp_path, plan)) == plan


def test_it_gets_the_pipes_of_this_machine():
    here = site(gpu(0, pipe="/here/0", attached=2, memory_taken=GIB), gpu(1, pipe="/here/1"))
    fitted = fit(made(), FILE, here, [model()])
    assert [gpu.pipe for gpu in fitted.gpus] == ["/here/0", "/here/1"]
    assert [gpu.attached for gpu in fitted.gpus] == [2, 0]
    assert fitted.slots == made().slots
    off = fit(made(mps=False), FILE, here, [model()])
    assert [(gpu.pipe, gpu.cap) for gpu in off.gpus] == [(None, None)] * 2


def test_the_users_threads_stand():
    assert all(slot.threads > 0 for slot in made().slots)
    fitted = fit(made(), FILE, site(set_threads=False), [model()])
    assert {slot.threads for slot in fitted.slots} == {0}


@pytest.mark.parametrize(
    ("here", "there", "this"),
    [
        (site(gpu(0, name="NVIDIA H100"), gpu(1)), "NVIDIA H200, GPU-00000000", "NVIDIA H100, GPU-00000000"),
        (site(gpu(0, memory_total=80 * GIB), gpu(1)), "140.00 GiB", "80.00 GiB"),
        (site(gpu(2), gpu(1)), "GPU-00000000-", "GPU-00000002-"),
        (site(gpu(0, cap=60), gpu(1)), "48", "60"),
        (site(gpu(0)), "GPUs: 2", "this machine has 1"),
        (site(cores=8), "host cores: 0-15", "this machine has 0-7"),
        (Site((), HostFacts(tuple(range(16)))), "GPUs: 2", "this machine has none"),
    ],
)
def test_another_machine_is_refused_with_the_difference(here, there, this):
    with pytest.raises(PlanError) as caught:
        fit(made(), FILE, here, [model()])
    what = caught.value.what
    assert "plan.json was made for another machine" in what and there in what and this in what, what
    assert "this machine has" in what


def test_the_cap_does_not_matter_without_mps():
    assert not fit(made(mps=False), FILE, site(gpu(0, cap=60), gpu(1)), [model()]).mps


def test_other_models_are_refused():
    for models, named in [
        ([model("ranker")], "it has model bert version 1.0, which is not loaded; model ranker version 1.0 is loaded"),
        ([model(version="2.0")], "it has model bert version 1.0, which is not loaded; model bert version 2.0"),
        ([model(), model("ranker")], "model ranker version 1.0 is loaded and not in it"),
        ([], "it has model bert version 1.0, which is not loaded"),
    ]:
        with pytest.raises(PlanError, match=named):
            fit(made(), FILE, site(), models)
    with pytest.raises(PlanError, match="its archive says deviceType: cpu"):
        fit(made(), FILE, site(), [dataclasses.replace(model(), device_type="cpu")])


def test_clients_that_others_have_taken_since_are_counted():
    plan = made(site(gpu()), model(workers=40))
    assert fit(plan, FILE, site(gpu(attached=8)), [model()]).gpus[0].attached == 8
    with pytest.raises(PlanError, match=r"needs 40 of the 48 MPS clients of GPU 0 .* and 9 are taken"):
        fit(plan, FILE, site(gpu(attached=9)), [model()])


def test_memory_that_is_gone_is_told():
    assert short_memory(made(), site()) == []
    (sentence,) = short_memory(made(), site(gpu(memory_taken=139 * GIB), gpu(1)))
    assert "GPU 0" in sentence and "1.0 GiB are free now" in sentence


def test_mig_is_planned_for_and_not_served():
    mig = gpu(uuid="MIG-00000001-0000-4000-8000-000000000000")
    with pytest.raises(PlanError, match="is for MIG instances, on which ts-mps does not serve"):
        fit(made(site(mig)), FILE, site(), [model()])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda plan: plan["slots"][0].update(gpu="GPU-x"), "slot 0 is on GPU-x"),
        (lambda plan: plan["slots"][1].update(number=7), "not numbered from 0 on"),
        (lambda plan: plan["slots"][1].update(thread_percentage=0), "a thread percentage of 0"),
        (lambda plan: plan["slots"][1].update(thread_percentage=101), "a thread percentage of 101"),
        (lambda plan: plan["slots"][1].update(thread_percentage=float("nan")), "a thread percentage of nan"),
        (lambda plan: plan["slots"][1].update(priority=3), "has priority 3"),
        (lambda plan: plan["slots"][1].update(threads=-1), "has -1 threads"),
        (lambda plan: plan["gpus"][1].update(clients=7), "says 7 client.s. of GPU 1 .* and has 2 slot"),
        (lambda plan: plan["slots"].pop(), "says 2 client.s. of GPU 1 .* and has 1 slot"),
        (lambda plan: plan["models"][0].update(workers=3), "says 3 worker.s. of model bert and has 4 slot"),
        (lambda plan: plan["models"].clear(), "says 0 worker.s. of model bert and has 4 slot"),
        (lambda plan: plan["gpus"].append(plan["gpus"][0]), "a GPU is in it twice"),
        (lambda plan: plan["gpus"][0].update(cap=1), "2 slots are on GPU 0 .* which takes 1 MPS clients"),
        (lambda plan: plan.update(mps=False), "has a client cap and MPS is off"),
        (lambda plan: plan.update(version=1), "a plan of version 1"),
        (lambda plan: plan.pop("slots"), "it is not a plan"),
        (lambda plan: plan["slots"][0].update(colour="red"), "it is not a plan"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(tmp_path, change, named):
    plan = made().as_json()
    plan = json.loads(json.dumps(plan))
    change(plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PlanError, match=named):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "{}", "\udcff"])
def test_what_is_no_plan_is_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text, errors="surrogateescape")
    with pytest.raises(PlanError, match=r"plan\.json cannot be used"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(UsageError, match="does not exist"):
        read_plan(tmp_path / "other.json")


@pytest.mark.parametrize(
    "given",
    [{"workers": ("4",)}, {"reserve": 0}, {"settings": "x.toml"}, {"mps": "off"}],
    ids=lambda given: next(iter(given)),
)
def test_flags_that_contradict_the_plan(given):
    check_arguments(StartArguments(mps="on"), FILE, made())
    with pytest.raises(UsageError, match="contradict each other"):
        check_arguments(StartArguments(**given), FILE, made())
    with pytest.raises(UsageError, match=r"--mps on and --plan plan\.json"):
        check_arguments(StartArguments(mps="on"), FILE, made(mps=False))


def test_an_edited_plan_with_a_type_that_cannot_be(tmp_path):
    wrong = [("thread_percentage", "half"), ("threads", None), ("number", "0"), ("cores", 3), ("model", None)]
    for field, value in [*wrong, ("priority", True), ("memory_limit", 4), ("memory_limit", "4 GiB")]:
        plan = json.loads(json.dumps(made().as_json()))
        plan["slots"][0][field] = value
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        with pytest.raises(PlanError):
            read_plan(tmp_path / "plan.json")

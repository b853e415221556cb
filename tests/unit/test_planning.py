"""What a start does with the planner's answer."""

from __future__ import annotations

import dataclasses
import json

import pytest
from support import pack
from test_plan_file import GIB, gpu, model, site

from ts_mps.errors import PlanError
from ts_mps.guardian.choice import MpsChoice
from ts_mps.guardian.planning import decide, mps_of, mps_wish, policy_of, read_ground, with_planned_workers
from ts_mps.plan.facts import Policy
from ts_mps.plan.profile import BatchRun, Profile, ScaleRun
from ts_mps.settings import ModelSettings, Settings
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.digest import content_digest
from ts_mps.torchserve.registration import Number

MPS = MpsChoice(True, "as the test says", None, 13000)
NOBODY = Number(2, "TorchServe's default, one for each GPU", chosen=False)


def unset(**more):
    return dataclasses.replace(model(workers=2, **more), asked=NOBODY)


def profiled(folder, *, batch: int = 1, off: float = 100.0, on: float = 80.0):
    """Settings with a profile in which one worker fills the GPU."""
    archive = folder / "bert.mar"
    pack(archive, "bert")
    run = BatchRun(batch, None, 132, 10.0, 9.0, 11.0, 9.9, 50, GIB // 2, GIB, GIB)
    scaling = tuple(
        ScaleRun(n, mps, batch, rate, rate, rate) for n in (1, 2) for mps, rate in ((False, off), (True, on))
    )
    profile = Profile("bert", "bert.mar", content_digest(archive), "NVIDIA H200", 132, (run,), scaling, 0.4, {})
    (folder / "bert.json").write_text(json.dumps(profile.as_json()))
    settings = Settings(models={"bert": ModelSettings(profile=folder / "bert.json")}, path=folder / "ts-mps.toml")
    return settings, dataclasses.replace(unset(), archive=archive)


def test_a_start_as_before_runs_what_torchserve_would():
    plan = decide(site(), [unset()], MPS, Settings(), StartArguments(), auto=False)
    assert plan.mps and plan.mps_why == "as the test says"
    assert [slot.gpu for slot in plan.slots] == [gpu(0).uuid, gpu(1).uuid]
    assert [one.pipe for one in plan.gpus] == ["/away/pipe"] * 2


def test_a_profile_that_was_broken_off_is_told(tmp_path):
    settings, bert = profiled(tmp_path)
    path = settings.models["bert"].profile
    path.write_text(json.dumps({**json.loads(path.read_text()), "machine": {"incomplete": "It was interrupted."}}))
    plan = decide(site(gpu()), [bert], MPS, settings, StartArguments(), auto=True)
    assert any("does not hold all that was to be measured. It was interrupted." in one for one in plan.warnings)


def test_auto_may_leave_mps_off_where_it_does_not_pay(tmp_path):
    settings, bert = profiled(tmp_path)
    plan = decide(site(gpu()), [bert], MPS, settings, StartArguments(), auto=True)
    assert not plan.mps and "100" in plan.mps_why and "80" in plan.mps_why
    choice = mps_of(plan, MPS)
    assert not choice.on and choice.why == f"MPS is off: {plan.mps_why}."
    asked = decide(site(gpu()), [bert], MPS, settings, StartArguments(mps="on"), auto=True)
    assert asked.mps and mps_of(asked, MPS) is MPS
    fixed = decide(site(gpu()), [bert], MPS, settings, StartArguments(), auto=False)
    assert fixed.mps, "a start without --plan auto does not ask"
    better, bert = profiled(tmp_path, on=150.0)
    assert decide(site(gpu()), [bert], MPS, better, StartArguments(), auto=True).mps


def test_a_profile_of_another_batch_size_is_refused(tmp_path):
    settings, bert = profiled(tmp_path, batch=8)
    with pytest.raises(PlanError, match="batch"):
        decide(site(gpu()), [bert], MPS, settings, StartArguments(), auto=True)


@pytest.mark.parametrize("auto", [False, True])
def test_an_instance_that_gets_its_models_later_still_has_mps(auto):
    for models in ([], [dataclasses.replace(unset(), device_type="cpu")]):
        plan = decide(site(), models, MPS, Settings(), StartArguments(), auto=auto)
        assert plan.mps and [(one.cap, one.pipe) for one in plan.gpus] == [(48, "/away/pipe")] * 2


def test_torchserve_is_told_what_the_plan_says():
    models = [unset(), model("ranker", workers=3), unset(name="late", version="")]
    plan = decide(site(), models, MPS, Settings(), StartArguments(), auto=True)
    told = with_planned_workers(models, plan)
    assert {one.name: one.workers for one in told} == {one.name: one.workers for one in plan.models}
    assert told[1].workers == 3 and [one.configured_workers for one in told] == [1, 1, 1]


def test_flags_beat_the_settings():
    settings = Settings(Policy(reserve=3), mps="off")
    assert policy_of(settings, StartArguments()).reserve == 3
    assert policy_of(settings, StartArguments(reserve=0)).reserve == 0
    assert mps_wish(StartArguments(), settings) == "off"
    assert mps_wish(StartArguments(mps="on"), settings) == "on"


def test_a_plan_file_leaves_the_settings_out(tmp_path):
    (tmp_path / "ts-mps.toml").write_text('[plan]\nmps = "off"\nreserve = 5\n')
    plan = decide(site(), [model()], MPS, Settings(), StartArguments(), auto=False)
    (tmp_path / "plan.json").write_text(json.dumps(plan.as_json()))
    ground = read_ground(StartArguments(plan="plan.json"), {}, tmp_path)
    assert ground.plan == plan and ground.settings == Settings() and ground.mps_wish == "auto"
    assert read_ground(StartArguments(plan="auto"), {}, tmp_path).mps_wish == "off"
    assert read_ground(StartArguments(), {}, tmp_path).settings.policy.reserve == 5

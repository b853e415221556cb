"""The plan that a change asks for, on a machine on which the instance itself is at work."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from test_plan_file import GIB, gpu, model, site

from ts_mps.errors import PlanError, UsageError
from ts_mps.guardian.change import replan as module
from ts_mps.guardian.change.replan import live_site, named, reread, rescaled
from ts_mps.guardian.choice import MpsChoice
from ts_mps.guardian.planning import decide
from ts_mps.paths import Home
from ts_mps.plan.facts import SERVER_BYTES
from ts_mps.plan.model import Plan, PlannedModel, Slot
from ts_mps.seats import take_seat
from ts_mps.settings import Settings
from ts_mps.torchserve.arguments import StartArguments

MPS = MpsChoice(True, "as the test says", None, 13000)
BERT = ("bert", "1.0")


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A start of two workers of bert on one GPU of 48 clients, and the machine it is on now."""
    home = Home(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_check_config", lambda prepared: None)
    monkeypatch.setattr(module, "live_site", lambda prepared, plan: site(gpu()))
    return SimpleNamespace(
        arguments=StartArguments(),
        models=(model(workers=2),),
        mps=MPS,
        environ={},
        folder=tmp_path,
        home=home,
        paths=home.instance("default"),
        gpus=(SimpleNamespace(uuid=gpu().uuid),),
        config=None,
    )


@pytest.fixture
def plan(prepared) -> Plan:
    return decide(site(gpu()), prepared.models, MPS, Settings(), prepared.arguments, auto=False)


def workers(plan: Plan) -> int:
    return len([slot for slot in plan.slots if slot.model == "bert"])


def test_another_number_of_workers(prepared, plan):
    assert workers(rescaled(prepared, plan, BERT, 5)) == 5
    assert workers(rescaled(prepared, plan, BERT, 1)) == 1


def test_more_than_the_cap_takes_is_refused_with_what_fits(prepared, plan):
    cap = plan.gpus[0].cap
    with pytest.raises(PlanError) as refused:
        rescaled(prepared, plan, BERT, cap)
    assert f"Nearest that fits: bert {cap - 1}" in refused.value.remedy, "one is the reserve"


def test_memory_that_a_plan_file_knows_is_kept_to(prepared, plan):
    told = dataclasses.replace(plan, models=(PlannedModel("bert", "1.0", 2, "so", 20 * GIB, "profile"),))
    (prepared.folder / "plan.json").write_text(json.dumps(told.as_json()))
    prepared.arguments = StartArguments(plan="plan.json")
    assert workers(rescaled(prepared, told, BERT, 6)) == 6
    with pytest.raises(PlanError, match="GiB") as refused:
        rescaled(prepared, told, BERT, 7)
    assert "Nearest that fits: bert 6" in refused.value.remedy


def test_a_model_is_named_by_its_version_where_it_has_several():
    several = Plan((), (Slot(0, "bert", "1.0", None), Slot(1, "bert", "2.0", None), Slot(2, "rank", None, None)))
    assert named(several, "bert/2.0") == ("bert", "2.0") and named(several, "rank") == ("rank", None)
    with pytest.raises(UsageError, match="several versions") as refused:
        named(several, "bert")
    assert refused.value.remedy == "Name one: bert/1.0, bert/2.0."
    with pytest.raises(UsageError, match="no workers of a model other"):
        named(several, "other")


@pytest.mark.parametrize("mps", ["on", "off"])
def test_mps_is_not_turned_while_it_serves(prepared, plan, mps):
    (prepared.folder / "ts-mps.toml").write_text(f'[plan]\nmps = "{mps}"\n')
    serving = dataclasses.replace(plan, mps=mps == "off")
    with pytest.raises(UsageError, match=f"MPS cannot be turned {mps} while") as refused:
        reread(prepared, serving, "")
    assert "ts-mps restart" in refused.value.remedy


def test_other_gpus_are_a_matter_of_a_restart(prepared, plan):
    elsewhere = dataclasses.replace(plan, gpus=(dataclasses.replace(plan.gpus[0], uuid="GPU-other"),))
    with pytest.raises(UsageError, match="other GPUs"):
        reread(prepared, elsewhere, "")


def test_settings_are_read_again(prepared, plan):
    assert workers(reread(prepared, plan, "")) == 2
    (prepared.folder / "ts-mps.toml").write_text("[models.bert]\nthread_percentage = 50\n")
    new = reread(prepared, plan, "")
    assert [slot.thread_percentage for slot in new.slots] == [50.0] * 2


def test_another_plan_file_beats_the_flags_of_the_start(prepared, plan):
    prepared.arguments = StartArguments(workers=("bert=2",), reserve=3)
    file = prepared.folder / "other.json"
    file.write_text(
        json.dumps(decide(site(gpu()), [model(workers=4)], MPS, Settings(), StartArguments(), auto=False).as_json())
    )
    assert workers(reread(prepared, plan, str(file))) == 4


def test_what_the_instance_takes_itself_is_free_to_it(prepared, plan, monkeypatch):
    monkeypatch.undo()
    taken = 30 * GIB + SERVER_BYTES
    planned = dataclasses.replace(plan, gpus=(dataclasses.replace(plan.gpus[0], memory_planned=20 * GIB),))
    before = dataclasses.replace(gpu(), attached=3, memory_taken=taken)
    monkeypatch.setattr(module, "read_inventory", lambda: SimpleNamespace(gpus=()))
    monkeypatch.setattr(module, "site_here", lambda *_: site(before))
    files = prepared.home.gpu(before.uuid)
    files.seats.mkdir(parents=True)
    held = [take_seat(files, 48, name, "bert") for name in ("default", "default", "another")]
    (now,) = live_site(prepared, planned).gpus
    assert all(held) and (now.attached, now.memory_taken) == (1, 10 * GIB)

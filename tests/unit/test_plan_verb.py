"""`ts-mps plan`: what it prints and writes, and what it refuses, on machines that a file describes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from support import simulated_gpu

from ts_mps.cli.main import VERBS, main
from ts_mps.plan.model import Plan

GIB = 2**30


@pytest.fixture
def here(short_dir, monkeypatch):
    """A working folder with a model store; nothing of the caller's environment reaches the plan."""
    monkeypatch.chdir(short_dir)
    for name in ("TS_CONFIG_FILE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_MAX_CONNECTIONS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TS_MPS_PLAN", "TS_MPS_SETTINGS", "TS_MPS_WORKERS", "TS_MPS_RESERVE", "TS_MPS_MPS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TS_MPS_HOME", str(short_dir / "home"))
    (short_dir / "store").mkdir()
    pack(short_dir, "bert")
    return short_dir


def pack(folder: Path, name: str, config: str = "batchSize: 4", weights: int = 1000) -> None:
    model = {"modelName": name, "modelVersion": "1.0", "handler": "handler.py", "configFile": "config.yaml"}
    with zipfile.ZipFile(folder / "store" / f"{name}.mar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
        archive.writestr("handler.py", "")
        archive.writestr("config.yaml", config)
        archive.writestr("model.pt", b"0" * weights)


def inventory(folder: Path, gpus: int = 2, cores: int = 32, **more: object) -> str:
    value = {
        "version": 1,
        "driver_version": "580.159.04",
        "control_version": 13000,
        "cores": list(range(cores)),
        "gpus": [
            {**simulated_gpu(index), "index": index, "sms": 132, "cores": list(range(cores)), **more}
            for index in range(gpus)
        ],
    }
    (folder / "machine.json").write_text(json.dumps(value))
    return "machine.json"


def plan(capsys, *words: str, models: str = "bert.mar") -> Plan:
    code = main(["plan", "--model-store", "store", "--models", models, "--json", *words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return Plan.from_json(json.loads(out))


def refused(capsys, *words: str, models: str = "bert.mar") -> tuple[int, str]:
    code = main(["plan", "--model-store", "store", "--models", models, *words])
    out, err = capsys.readouterr()
    assert code != 0, out
    return code, " ".join(err.split())


def test_without_a_gpu_it_plans_for_the_cpu(here, capsys):
    made = plan(capsys)
    assert made.gpus == () and not made.mps and len(made.slots) >= 1
    assert {slot.gpu for slot in made.slots} == {None}
    assert made.machine["GPUs"] == "none"
    assert not (here / "home").exists(), "nothing is made"


def test_a_machine_one_does_not_sit_at(here, capsys):
    made = plan(capsys, "--inventory", inventory(here))
    assert made.mps and [gpu.cap for gpu in made.gpus] == [48, 48]
    assert {gpu.cap_why for gpu in made.gpus} == {"control binary 13000"}
    assert {gpu.reserve for gpu in made.gpus} == {1} and {gpu.pipe for gpu in made.gpus} == {None}
    assert {slot.gpu for slot in made.slots} == {gpu.uuid for gpu in made.gpus}
    (model,) = made.models
    assert model.workers == len(made.slots) and model.memory_source == "estimate" and model.why


def test_its_own_inventory_is_read_back(here, capsys, simulator):
    assert main(["plan", "--print-inventory"]) == 0
    printed = capsys.readouterr().out
    assert main(["plan", "--print-inventory", "-o", "machine.json"]) == 0
    assert json.loads(printed) == json.loads((here / "machine.json").read_text())
    capsys.readouterr()
    away = plan(capsys, "--inventory", "machine.json")
    local = plan(capsys)
    assert [slot.gpu for slot in away.slots] == [slot.gpu for slot in local.slots]
    assert away.machine == local.machine
    assert local.gpus[0].pipe is not None and away.gpus[0].pipe is None


def test_the_tables_say_what_the_plan_says(here, capsys):
    words = ["--model-store", "store", "--models", "bert.mar", "--workers", "3", "--inventory", inventory(here)]
    assert main(["plan", *words, "-o", "plan.json", "--percentages", "even"]) == 0
    out, err = capsys.readouterr()
    made = Plan.from_json(json.loads((here / "plan.json").read_text()))
    assert "Written: plan.json" in err and len(made.slots) == 3
    text = " ".join(out.split())
    for gpu in made.gpus:
        assert f"{gpu.clients} of 48; 1 kept free" in text and gpu.uuid[:12] in text
    for words in (*(slot.why for slot in made.slots), *(model.why for model in made.models), made.mps_why):
        assert words in text
    assert sorted(gpu.clients for gpu in made.gpus) == [1, 2] and "50 % = 66 SMs" in text


@pytest.mark.parametrize(("words", "share"), [(("--percentages", "30"), 30.0), (("--percentages", "none"), None)])
def test_percentages(here, capsys, words, share):
    made = plan(capsys, "--inventory", inventory(here), "--workers", "4", *words)
    assert {slot.thread_percentage for slot in made.slots} == {share}


def test_counts_are_honoured_or_refused_with_what_fits(here, capsys):
    machine = inventory(here)
    assert len(plan(capsys, "--inventory", machine, "--workers", "94").slots) == 94
    code, why = refused(capsys, "--inventory", machine, "--workers", "95")
    assert code == 4 and "95" in why and "94" in why
    assert len(plan(capsys, "--inventory", machine, "--workers", "96", "--reserve", "0").slots) == 96


def test_the_sentence_about_one_gpu(here, capsys):
    code, why = refused(capsys, "--inventory", inventory(here, gpus=1), "--workers", "49")
    assert code == 4 and "49 workers" in why and "48 clients" in why
    code, why = refused(capsys, "--inventory", "machine.json", "--workers", "48")
    assert code == 4 and "kept free (--reserve)" in why and "bert 47" in why


def test_settings_count(here, capsys):
    (here / "ts-mps.toml").write_text('[plan]\nreserve = 2\n[models.bert]\nworkers = "3-3"\ngpus = [1]\n')
    made = plan(capsys, "--inventory", inventory(here))
    assert [slot.gpu for slot in made.slots] == [made.gpus[1].uuid] * 3 and made.gpus[0].reserve == 2
    assert plan(capsys, "--inventory", "machine.json", "--reserve", "0").gpus[0].reserve == 0
    (here / "off.toml").write_text('[plan]\nmps = "off"\n')
    off = plan(capsys, "--inventory", "machine.json", "--settings", "off.toml")
    assert not off.mps and off.gpus[0].cap is None
    assert plan(capsys, "--inventory", "machine.json", "--settings", "off.toml", "--mps", "on").mps


def test_mig_instances_are_planned_for(here, capsys):
    mig = [
        {
            "uuid": f"MIG-{number:08x}-0000-4000-8000-000000000000",
            "profile": "3g.71gb",
            "memory_total": 70 * GIB,
            "memory_free": 70 * GIB,
            "sms": 60,
            "slices": 3,
        }
        for number in (1, 2)
    ]
    made = plan(capsys, "--inventory", inventory(here, gpus=1, mig=mig, mig_enabled=True), "--workers", "4")
    assert "on which ts-mps start does not serve yet" in made.warnings[-1]
    assert [gpu.uuid for gpu in made.gpus] == [one["uuid"] for one in mig]
    assert [gpu.cap for gpu in made.gpus] == [48 * 60 // 132] * 2
    assert sorted(slot.gpu for slot in made.slots) == sorted([mig[0]["uuid"], mig[1]["uuid"]] * 2)
    assert main(["plan", "--model-store", "store", "--models", "bert.mar", "--inventory", "machine.json"]) == 0
    assert "GPU 0 MIG-00000001" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("--plan", "x.json"), 2, "--plan is for ts-mps start"),
        (("--workers", "-3"), 2, "'-3' is neither a number of workers"),
        (("--workers", "brt=3"), 2, "no model brt is loaded"),
        (("--reserve", "-1"), 2, "'-1' is not a whole number"),
        (("--percentages", "0"), 2, "neither none, even or overlap"),
        (("--percentages", "nan"), 2, "neither none, even or overlap"),
        (("--percentages", "101"), 2, "neither none, even or overlap"),
        (("--inventory", "nothing.json"), 2, "nothing.json does not exist"),
        (("--settings", "nothing.toml"), 2, "nothing.toml does not exist"),
        (("--print-inventory", "--inventory", "x"), 2, "--inventory names another"),
        (("--mps", "on"), 5, "no usable GPU"),
        (("--frobnicate",), 2, "ts-mps plan"),
        (("--inventory", ""), 2, "--inventory: it is empty"),
        (("-o", ""), 2, "-o/--output: it is empty"),
        (("-o", "store"), 3, "The plan cannot be written to store: it is a folder"),
        (("-o", "no/plan.json"), 3, "The plan cannot be written to no/plan.json: there is no folder"),
        (("-o", "/proc/plan.json"), 3, "The plan cannot be written to /proc/plan.json: No such file"),
    ],
)
def test_what_cannot_be_asked_for(here, capsys, words, code, named):
    got, why = refused(capsys, *words)
    assert (got, named in why) == (code, True), why


def test_a_machine_without_gpus_says_so_beside_its_inventory(here, capsys):
    assert main(["plan", "--print-inventory"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["gpus"] == [] and "no NVIDIA driver" in err


def test_an_inventory_that_cannot_be(here, capsys):
    code, why = refused(capsys, "--inventory", inventory(here, gpus=0))
    assert code == 3 and "lists no GPU" in why
    code, why = refused(capsys, "--inventory", inventory(here, memory_total=-5))
    assert code == 3 and "memory_total" in why
    code, why = refused(capsys, "--inventory", inventory(here, mig_enabled=True))
    assert code == 4 and "in MIG mode and has no instances" in why


def test_a_gpu_that_no_process_can_use(here, capsys):
    code, why = refused(capsys, "--inventory", inventory(here, compute_mode="Prohibited"))
    assert code == 3 and "GPU 0 (NVIDIA H200) is in compute mode Prohibited" in why


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help(verb, capsys):
    try:
        code = main([verb, "--help"])
    except SystemExit as done:
        code = done.code
    out = capsys.readouterr().out
    assert code == 0 and out.startswith(f"usage: ts-mps {verb}")


def test_what_is_no_file_is_written_to_and_a_link_stays_one(here, capsys):
    (here / "null").symlink_to("/dev/null")
    (here / "link.json").symlink_to("plan.json")
    plan(capsys, "-o", "null")
    made = plan(capsys, "-o", "link.json")
    assert (here / "null").is_symlink() and (here / "link.json").is_symlink()
    assert Plan.from_json(json.loads((here / "plan.json").read_text())) == made
    assert sorted(path.name for path in here.iterdir()) == ["link.json", "null", "plan.json", "store"]


def test_without_mps_the_plan_says_the_true_reason(here, capsys):
    assert plan(capsys).mps_why.startswith("MPS is off: This machine has no NVIDIA driver")
    made = plan(capsys, "--mps", "off", "--inventory", inventory(here))
    assert made.mps_why == "MPS is off as asked (--mps off, or mps in the settings)."
    assert main(["plan", "--model-store", "store", "--models", "bert.mar"]) == 0
    assert capsys.readouterr().out.startswith(f"{len(plan(capsys).slots)} worker(s). MPS is off: This machine")


def test_a_snapshot_of_this_machine_says_nothing_of_another(here, capsys, monkeypatch):
    monkeypatch.delenv("LOG_LOCATION", raising=False)
    folder = here / "logs" / "config"
    folder.mkdir(parents=True)
    (folder / "20260101000000000-startup.cfg").write_text("number_of_gpu=0\n")
    made = plan(capsys, "--inventory", inventory(here))
    assert made.mps and len(made.gpus) == 2


def test_no_model_is_no_plan(here, capsys):
    assert main(["plan"]) == 2
    assert "There is no model store" in capsys.readouterr().err
    assert main(["plan", "--model-store", "store"]) == 2
    assert "no model to plan for" in capsys.readouterr().err


def test_an_error_is_json_too(here, capsys):
    code = main(["plan", "--json", "--models", "bert.mar", "--model-store", "store", "--settings", "nothing.toml"])
    assert code == 2 and json.loads(capsys.readouterr().out)["exit_code"] == 2

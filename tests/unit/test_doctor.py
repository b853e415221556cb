import json
import resource
import subprocess

import pytest
from support import SIMULATOR, simulated_gpu

from ts_mps.cli import doctor
from ts_mps.doctor import machine
from ts_mps.doctor.examine import examine
from ts_mps.torchserve.arguments import parse


@pytest.fixture
def look(short_dir, monkeypatch):
    """Findings by check, for these flags in an empty folder."""
    monkeypatch.chdir(short_dir)
    for name in ("TS_CONFIG_FILE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TS_MPS_HOME", str(short_dir / "home"))
    monkeypatch.setenv("TMPDIR", str(short_dir))

    def examined(*words, **environ):
        import os

        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return {finding.check: finding for finding in examine(parse(words, os.environ), os.environ)}

    return examined


def test_it_makes_nothing(look, short_dir):
    look("--model-store", str(short_dir))
    assert list(short_dir.iterdir()) == []


def test_without_a_gpu_it_warns_and_under_mps_on_it_is_an_error(look):
    assert look()["MPS"].level == "warning"
    finding = look("--mps", "on")["MPS"]
    assert finding.level == "error" and "no usable GPU" in finding.what and finding.remedy


def test_a_gpu_with_mps_is_well_and_says_its_cap(look, simulator):
    found = look()
    assert found["MPS"].level == found["GPU 0"].level == found["driver"].level == "ok"
    assert "at most 48 MPS clients" in found["GPU 0"].what


def test_a_newer_control_binary_takes_60(look, simulator):
    assert "at most 60 MPS clients" in look(SIM_MPS_VERSION="13010")["GPU 0"].what


def test_mig_and_old_gpus_are_warned_about(look, simulator):
    mig = look(SIM_GPUS=json.dumps([simulated_gpu(mig=True)]))
    assert mig["MPS"].level == "warning" and "MIG" in mig["GPU 0"].what
    old = look(SIM_GPUS=json.dumps([simulated_gpu(compute_capability=[6, 1])]))
    assert old["GPU 0"].level == "warning" and "16 clients" in old["GPU 0"].what


def test_a_missing_control_program_is_an_error(look, simulator, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    finding = look()["MPS"]
    assert finding.level == "error" and "nvidia-cuda-mps-control is not on PATH" in finding.what


def test_an_answering_daemon_at_the_users_pipe_folder_is_named(look, simulator, short_dir):
    pipe = short_dir / "theirs"
    pipe.mkdir()
    subprocess.run(
        [str(SIMULATOR / "nvidia-cuda-mps-control"), "-d"],
        env={**simulator, "CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_LOG_DIRECTORY": str(short_dir)},
        check=True,
    )
    assert "adopts it" in look(CUDA_MPS_PIPE_DIRECTORY=str(pipe))["foreign daemon"].what


def test_limits(look, monkeypatch):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (1024, hard))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: type("Usage", (), {"total": 64 << 20}))
    found = look(OMP_NUM_THREADS="4")
    assert [found[check].level for check in ("open files", "/dev/shm", "threads")] == ["warning"] * 3
    assert "16384" in found["open files"].remedy and "64 MiB" in found["/dev/shm"].what
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (65536, hard))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: type("Usage", (), {"total": 8 << 30}))
    monkeypatch.delenv("OMP_NUM_THREADS")
    found = look()
    assert [found[check].level for check in ("open files", "/dev/shm", "threads")] == ["ok"] * 3


def test_another_torchserve_version_is_warned_about(look, monkeypatch):
    monkeypatch.setattr(machine, "version", lambda _: "0.11.0")
    assert look()["torchserve"].level == "warning"
    monkeypatch.setattr(machine, "version", lambda _: "0.12.0")
    assert look()["torchserve"].level == "ok"


def test_java(look):
    assert look()["java"].level == "ok"
    finding = look(JAVA_HOME="/nowhere")["java"]
    assert finding.level == "error" and "JAVA_HOME" in finding.what


def test_the_management_port_open_to_the_world(look, short_dir):
    config = short_dir / "c.properties"
    config.write_text("management_address=http://0.0.0.0:8081\nallowed_urls=https://models.example/.*\n")
    guarded = look("--ts-config", str(config))
    assert guarded["bind addresses"].level == "warning" and "only the token" in guarded["bind addresses"].what
    assert guarded["allowed_urls"].level == "ok"
    opened = look("--ts-config", str(config), "--disable-token-auth", "--enable-model-api")
    assert opened["bind addresses"].level == "error"
    assert opened["token authorisation"].level == opened["model API"].level == "warning"


def test_an_inference_port_open_to_the_world_is_a_warning(look, short_dir):
    config = short_dir / "c.properties"
    config.write_text("inference_address=http://0.0.0.0:8080\n")
    assert look("--ts-config", str(config))["bind addresses"].level == "warning"
    assert look()["bind addresses"].level == "ok"


def test_a_snapshot_in_the_way(look, short_dir):
    folder = short_dir / "logs" / "config"
    folder.mkdir(parents=True)
    (folder / "20260101000000000-startup.cfg").write_text("model_store=store\n")
    assert "--ncs" in look()["snapshot"].remedy
    assert "snapshot" not in look("--ncs")


def test_models_and_files_are_checked_with_the_flags_of_start(look, short_dir):
    (short_dir / "store").mkdir()
    found = look("--model-store", str(short_dir / "store"), "--models", "missing.mar")
    assert found["models"].level == "error" and "missing.mar" in found["models"].what
    gone = look("--model-store", str(short_dir / "gone"))
    assert gone["files"].level == "error"


def test_a_runtime_folder_that_does_not_do(look, short_dir):
    finding = look("--runtime-dir", str(short_dir / ("x" * 100)))["runtime folder"]
    assert finding.level == "error" and "too long" in finding.what


def test_exit_codes_and_json(look, short_dir, monkeypatch, capsys):
    look()  # the empty folder and its environment
    assert doctor.main(["--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["version"] == 1 and result["ok"] is True
    assert {"check", "level", "what", "remedy"} == set(result["findings"][0])
    assert doctor.main(["--mps", "on"]) == 3
    text = capsys.readouterr().out
    assert "error" in text and "-> Use --mps auto" in text
    assert doctor.main(["--help"]) == 0

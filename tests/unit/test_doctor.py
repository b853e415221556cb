import json
import os
import resource
import socket
import subprocess
import zipfile
from pathlib import Path

import pytest
from support import CONTROL, SIMULATOR, mps_processes, simulated_gpu

from ts_mps.cli import doctor
from ts_mps.doctor import gpus, machine, neighbours
from ts_mps.doctor.examine import examine
from ts_mps.gpu.measured import remember_cap
from ts_mps.torchserve.arguments import parse


@pytest.fixture
def look(short_dir, monkeypatch):
    """Findings by check, for these flags in an empty folder."""
    monkeypatch.chdir(short_dir)
    for name in ("TS_CONFIG_FILE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TS_MPS_HOME", str(short_dir / "home"))
    monkeypatch.setenv("TMPDIR", str(short_dir))
    # MPS that runs on this machine for others, other tests included, is not this test's.
    monkeypatch.setattr(neighbours, "DEFAULT_PIPE", short_dir / "default")
    everything = neighbours._running
    monkeypatch.setattr(neighbours, "_running", lambda: [p for p in everything() if p in mps_processes(short_dir)])

    def examined(*words, **environ):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return {finding.check: finding for finding in examine(parse(words, os.environ), os.environ, Path.cwd())}

    return examined


def test_it_makes_nothing(look, short_dir):
    look("--model-store", str(short_dir), "--models", "all")
    assert list(short_dir.iterdir()) == []


def test_it_starts_nothing_on_a_gpu(look, simulator, short_dir):
    store = store_with(short_dir / "store")
    look("--model-store", store, "--models", "m.mar", "--exclusive", "--mps", "on")
    assert {path.name for path in short_dir.rglob("*")} == {"store", "m.mar"}
    assert mps_processes(short_dir) == []


def test_without_a_gpu_it_warns_and_under_mps_on_it_is_an_error(look):
    assert look()["MPS"].level == "warning"
    finding = look("--mps", "on")["MPS"]
    assert finding.level == "error" and "no usable GPU" in finding.what and finding.remedy


def test_a_gpu_with_mps_is_well_and_says_its_cap(look, simulator):
    found = look()
    assert found["MPS"].level == found["GPU 0"].level == found["driver"].level == "ok"
    assert "at most 48 MPS clients" in found["GPU 0"].what


def test_a_measured_cap_is_shown(look, simulator, short_dir):
    (short_dir / "home").mkdir(mode=0o700)
    remember_cap(short_dir / "home" / "caps.json", "580.159.04", "NVIDIA H200", 13000, 2, 47)
    assert "at most 47 MPS clients (measured)" in look()["GPU 0"].what
    assert "at most 48 MPS clients" in look(CUDA_DEVICE_MAX_CONNECTIONS="4")["GPU 0"].what


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


def test_a_gpu_that_nothing_can_use_is_an_error(look, simulator):
    finding = look(SIM_GPUS=json.dumps([simulated_gpu(compute_mode=2)]))["GPU 0"]
    assert finding.level == "error" and "Prohibited" in finding.what and "nvidia-smi -i 0 -c DEFAULT" in finding.remedy


def test_exclusive_process_is_fine_with_mps_and_not_without(look, simulator):
    exclusive = json.dumps([simulated_gpu(compute_mode=3)])
    assert look(SIM_GPUS=exclusive)["GPU 0"].level == "ok"
    finding = look("--mps", "off", SIM_GPUS=exclusive)["GPU 0"]
    assert finding.level == "warning" and "only one worker" in finding.what


def test_the_exclusive_flag_needs_root(look, simulator, monkeypatch):
    monkeypatch.setattr(gpus.os, "geteuid", lambda: 1000)
    assert look("--exclusive")["--exclusive"].level == "warning"
    monkeypatch.setattr(gpus.os, "geteuid", lambda: 0)
    assert look("--exclusive")["--exclusive"].level == "ok"


def test_visible_gpus_that_do_not_exist_leave_no_word_about_mps(look, simulator):
    found = look(CUDA_VISIBLE_DEVICES="7")
    assert found["visible GPUs"].level == "error" and "'7'" in found["visible GPUs"].what
    assert "MPS" not in found and "GPU 0" not in found


def test_a_torch_without_cuda_beside_a_gpu(look, simulator, monkeypatch):
    monkeypatch.setattr(gpus.runpy, "run_path", lambda _: {"cuda": None, "__version__": "2.9.0+cpu"})
    assert look()["torch"].level == "warning"
    monkeypatch.setattr(gpus.runpy, "run_path", lambda _: {"cuda": "13.0", "__version__": "2.9.0"})
    assert look()["torch"].level == "ok"


def start_daemon(simulator, pipe, **more):
    pipe.mkdir()
    folders = {"CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_LOG_DIRECTORY": str(pipe)}
    subprocess.run([str(SIMULATOR / CONTROL), "-d"], env={**simulator, **folders, **more}, check=True)


def test_the_users_daemon_is_adopted_if_it_serves_the_gpus(look, simulator, short_dir):
    start_daemon(simulator, short_dir / "theirs")
    found = look(CUDA_MPS_PIPE_DIRECTORY=str(short_dir / "theirs"))
    assert found["CUDA_MPS_PIPE_DIRECTORY"].level == found["foreign daemon"].level == "ok"
    assert "adopts it" in found["CUDA_MPS_PIPE_DIRECTORY"].what


def test_the_users_daemon_that_serves_other_gpus_is_an_error(look, simulator, short_dir):
    two = json.dumps([simulated_gpu(0), simulated_gpu(1)])
    start_daemon(simulator, short_dir / "theirs", SIM_GPUS=two, CUDA_VISIBLE_DEVICES=simulated_gpu(1)["uuid"])
    assert look(CUDA_MPS_PIPE_DIRECTORY=str(short_dir / "theirs"))["CUDA_MPS_PIPE_DIRECTORY"].level == "error"


def test_a_pipe_folder_where_nobody_answers_is_warned_about(look, simulator, short_dir):
    finding = look(CUDA_MPS_PIPE_DIRECTORY=str(short_dir / "nobody"))["CUDA_MPS_PIPE_DIRECTORY"]
    assert finding.level == "warning" and "No MPS daemon answers" in finding.what


@pytest.mark.parametrize("folder", ["default", "elsewhere"])
def test_a_strangers_daemon_on_our_gpu_is_warned_about(look, simulator, short_dir, folder):
    assert look()["foreign daemon"].level == "ok"
    start_daemon(simulator, short_dir / folder)
    finding = look()["foreign daemon"]
    assert finding.level == "warning" and str(short_dir / folder) in finding.what
    assert f"CUDA_MPS_PIPE_DIRECTORY={short_dir / folder} nvidia-cuda-mps-control" in finding.remedy


def test_a_strangers_daemon_on_another_gpu_is_not(look, simulator, short_dir):
    two = json.dumps([simulated_gpu(0), simulated_gpu(1)])
    start_daemon(simulator, short_dir / "default", SIM_GPUS=two, CUDA_VISIBLE_DEVICES=simulated_gpu(1)["uuid"])
    assert look()["foreign daemon"].level == "ok"


def test_a_daemon_of_ours_is_no_stranger(look, simulator, short_dir):
    pipe = short_dir / "home" / "gpus" / str(simulated_gpu()["uuid"]) / "pipe"
    (short_dir / "home").mkdir(mode=0o700)
    pipe.parent.mkdir(parents=True)
    start_daemon(simulator, pipe)
    assert look()["foreign daemon"].level == "ok"


def test_a_strangers_daemon_that_hangs_is_warned_about(look, simulator, short_dir, monkeypatch):
    monkeypatch.setattr(neighbours, "_ANSWER_S", 0.3)
    start_daemon(simulator, short_dir / "default", SIM_MPS_NO_ANSWER="1")
    finding = look()["foreign daemon"]
    assert finding.level == "warning" and "did not answer" in finding.what


def test_mps_of_another_user_is_warned_about(look, simulator, short_dir, monkeypatch):
    start_daemon(simulator, short_dir / "elsewhere")
    (daemon,) = mps_processes(short_dir)
    monkeypatch.setattr(neighbours.os, "getuid", lambda: os.geteuid() + 1)
    finding = look()["other users' MPS"]
    assert finding.level == "warning" and f"{CONTROL} of " in finding.what and f"(pid {daemon.pid})" in finding.what


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


def test_missing_packages_are_an_error(look, monkeypatch):
    assert look()["packages"].level == "ok"
    monkeypatch.setattr(machine, "_PACKAGES", {"no_such_module": "pyyaml"})
    finding = look()["packages"]
    assert finding.level == "error" and finding.remedy.endswith("-m pip install pyyaml")


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


def store_with(folder, **manifest):
    """A model store with the smallest archive there is."""
    folder.mkdir(exist_ok=True)
    model = {"modelName": "m", "modelVersion": "1.0", "handler": "h.py", **manifest}
    with zipfile.ZipFile(folder / "m.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
        archive.writestr("h.py", "def handle(data, context):\n    return data\n")
    return str(folder)


def test_the_plan_is_made(look, simulator, short_dir):
    flags = ["--model-store", store_with(short_dir / "store"), "--models", "m.mar", "--workers"]
    found = look(*flags, "48", "--reserve", "0")
    assert found["models"].what == "m 1.0: 48 worker(s)" and found["plan"].level == "ok"
    assert "48 worker(s) on GPU 0, which takes 48 MPS clients" in found["plan"].what
    refused = look(*flags, "48")["plan"]
    assert refused.level == "error" and "48 workers" in refused.what and "47" in refused.remedy


def test_the_planning_of_a_start_is_examined(look, simulator, short_dir):
    flags = ["--model-store", store_with(short_dir / "store"), "--models", "m.mar"]
    assert "without a settings file" in look(*flags)["planning"].what
    (short_dir / "ts-mps.toml").write_text("[models.n]\nworkers = 2\n")
    found = look(*flags)
    assert found["planning"].level == "ok" and "ts-mps.toml" in found["planning"].what
    assert found["plan"].level == "error" and "model n, which is not loaded" in found["plan"].what
    (short_dir / "ts-mps.toml").write_text("[plan]\nreserve = -1\n")
    assert look(*flags)["planning"].level == "error"
    assert look(*flags, "--plan", "nothing.json")["planning"].level == "error"


def test_workers_that_cannot_be_mps_clients_are_an_error(look, simulator, short_dir):
    (short_dir / "c.properties").write_text("cpu_launcher_enable=true\n")
    store = store_with(short_dir / "store")
    found = look("--model-store", store, "--models", "m.mar", "--ts-config", str(short_dir / "c.properties"))
    assert found["plan"].level == "error" and "cpu_launcher_enable" in found["plan"].what


def test_without_a_model_store_the_other_files_are_still_checked(look):
    found = look()
    assert found["model store"].level == "warning" and found["files"].level == "ok"
    found = look("--log-config", "nowhere.xml")
    assert found["files"].level == "error" and "nowhere.xml" in found["files"].what


def test_a_configuration_that_cannot_be_read_ends_what_follows_from_it(look, short_dir):
    config = short_dir / "c.properties"
    for text in ("number_of_gpu=abc\n", "inference_address=foo\n", "models={\n", "a=\\u12\n"):
        config.write_text(text)
        found = look("--ts-config", str(config))
        assert found["configuration"].level == "error" and "line 1" in found["configuration"].what
        assert found["not checked"].level == "warning"
        assert {"ports", "MPS", "bind addresses"}.isdisjoint(found)


def test_a_taken_port(look, short_dir):
    config = short_dir / "c.properties"
    with socket.create_server(("127.0.0.1", 0)) as server:
        config.write_text(f"inference_address=http://127.0.0.1:{server.getsockname()[1]}\n")
        finding = look("--ts-config", str(config))["ports"]
    assert finding.level == "error" and "is taken" in finding.what


def test_what_runs_is_named_and_its_ports_are_left_alone(look, monkeypatch):
    monkeypatch.setattr("ts_mps.torchserve.pid_file.read", lambda _: 4242)
    found = look()
    assert found["instance"].level == "error" and "4242" in found["instance"].what
    assert found["ports"].level == "ok" and "Not tried" in found["ports"].what


def test_allowed_urls_open_to_everything(look, short_dir):
    config = short_dir / "c.properties"
    levels = {}
    for pattern in (".*", "file://.*|http(s)?://.*", "https?://.*", "file:///srv/.*", "disabled"):
        config.write_text(f"allowed_urls={pattern}\n")
        levels[pattern] = look("--ts-config", str(config))["allowed_urls"].level
    assert list(levels.values()) == ["warning"] * 3 + ["ok"] * 2
    assert look()["allowed_urls"].level == "warning"


def test_a_runtime_folder_that_does_not_do(look, short_dir, monkeypatch):
    def of(folder):
        return look("--runtime-dir", str(folder))["runtime folder"]

    assert "too long" in of(short_dir / ("x" * 100)).what
    (short_dir / "file").touch()
    assert "Not a directory" in of(short_dir / "file" / "below").what
    (short_dir / "open").mkdir()
    (short_dir / "open").chmod(0o755)
    assert "chmod 700" in of(short_dir / "open").remedy
    (short_dir / "link").symlink_to(short_dir / "home")
    assert "symbolic link" in of(short_dir / "link").what
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    assert "not writable" in of(short_dir / "home").what
    assert of(short_dir / "home").level == "error"


def test_a_runtime_folder_that_does(look, short_dir):
    assert look()["runtime folder"].level == "ok"
    (short_dir / "home").mkdir(mode=0o700)
    assert "yours alone" in look()["runtime folder"].what


def test_exit_codes_and_json(look, short_dir, monkeypatch, capsys):
    look()  # the empty folder and its environment
    assert doctor.main(["--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["version"] == 1 and result["ok"] is True
    assert {"check", "level", "what", "remedy"} == set(result["findings"][0])
    assert doctor.main(["--mps", "on"]) == 3
    text = capsys.readouterr().out
    assert "error" in text and "-> Use --mps auto" in text and "correct the errors" in text
    assert doctor.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: ts-mps doctor") and "Exit code 0: no errors; 3: a start would fail." in shown

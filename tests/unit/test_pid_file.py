from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile

import pytest
import ts.model_server

from ts_mps.errors import TsMpsError
from ts_mps.torchserve import pid_file


@pytest.fixture
def frontend():
    """A process that TorchServe would take for its frontend."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "org.pytorch.serve.ModelServer"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return pid_file.location()


def test_location_is_torchserves(place, tmp_path):
    assert place == tmp_path / ".model_server.pid"


def test_write_read_remove(place, frontend):
    assert pid_file.read(place) is None
    pid_file.write(place, frontend.pid)
    assert pid_file.read(place) == frontend.pid
    assert stat.S_IMODE(place.stat().st_mode) == 0o644
    pid_file.remove(place, frontend.pid + 1)
    assert place.exists()
    pid_file.remove(place, frontend.pid)
    assert not place.exists()
    pid_file.remove(place, frontend.pid)


def test_dead_frontend_is_stale(place, frontend):
    pid_file.write(place, frontend.pid)
    frontend.kill()
    frontend.wait()
    assert pid_file.read(place) is None


@pytest.mark.parametrize("content", ["", "\n", "garbage", "-5", "99999999999999999999", str(os.getpid()), "\udcff"])
def test_what_names_no_frontend_is_stale(place, content):
    place.write_text(content, errors="surrogateescape")
    assert pid_file.read(place) is None


def test_link_is_replaced_not_followed(place, tmp_path, frontend):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place.symlink_to(victim)
    pid_file.write(place, frontend.pid)
    assert victim.read_text() == "precious"
    assert not place.is_symlink()


def test_folder_that_cannot_be_written_to(tmp_path):
    with pytest.raises(TsMpsError, match="cannot be written") as caught:
        pid_file.write(tmp_path / "missing" / ".model_server.pid", 1)
    assert caught.value.exit_code == 1
    assert "TMPDIR" in caught.value.remedy


def test_torchserve_itself_stops_what_our_file_names(place, frontend, monkeypatch, tmp_path, capsys):
    pid_file.write(place, frontend.pid)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["torchserve", "--stop"])
    ts.model_server.start()
    assert "TorchServe has stopped." in capsys.readouterr().out
    assert frontend.wait(10) == -15
    assert not place.exists()


def test_torchserve_itself_sees_that_a_server_is_running(place, frontend, monkeypatch, capsys):
    pid_file.write(place, frontend.pid)
    monkeypatch.setattr(sys, "argv", ["torchserve", "--start"])
    with pytest.raises(SystemExit) as caught:
        ts.model_server.start()
    assert caught.value.code == 1
    assert "already running" in capsys.readouterr().out

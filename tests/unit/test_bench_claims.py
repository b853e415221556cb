"""What one process has alone."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from benching import arm

from ts_mps.bench import claims
from ts_mps.bench.claims import Claim, Ports, claim_file
from ts_mps.bench.site import Place, Site
from ts_mps.errors import PreflightError

HOLD = """
import sys
from pathlib import Path
from ts_mps.bench.claims import claim_file
held = claim_file(Path(sys.argv[1]), "The study")
print("held", flush=True)
sys.stdin.read()
"""


def test_ports_are_free_and_different():
    ports = Ports(5)
    assert len(set(ports.numbers)) == 5
    for port in ports.numbers:
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))
            server.listen()
    ports.release()


def test_a_port_that_another_study_has_is_not_taken(monkeypatch):
    """It does not listen yet, so the kernel says that the port is free."""
    mine = Ports(1)
    offered = iter((mine.numbers[0], mine.numbers[0], 1))

    class Offers:
        def __enter__(self) -> Offers:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def bind(self, address: object) -> None:
            pass

        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", next(offered)

    real = socket.socket
    monkeypatch.setattr(claims.socket, "socket", lambda *words: real(*words) if words else Offers())
    other = Ports(1)
    assert other.numbers == [1]
    mine.release()
    again = Claim(f"port-{mine.numbers[0]}")
    again.release()
    other.release()


def test_a_server_has_its_ports_until_it_has_ended():
    place = Place(Site("m", Path("none"), None, (0,), {}), arm(noop=True, device="cpu"))
    ports = re.findall(r"[=:](\d+)$", place.config.read_text().partition("job_queue_size")[0], re.MULTILINE)
    assert len(ports) == 5
    for port in ports:
        with pytest.raises(OSError, match="in use"):
            Claim(f"port-{port}")
    place.end()
    for port in ports:
        Claim(f"port-{port}").release()


def test_a_file_is_written_by_one_call_alone_and_free_when_that_has_died(tmp_path):
    path = tmp_path / "study.json"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(PreflightError, match="written by another call"):
        claim_file(Path(tmp_path / "link" / "study.json"), "The study")
    claim_file(tmp_path / "other.json", "The study").release()
    holder.kill()
    holder.wait()
    claim_file(path, "The study").release()

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import free_ports

from ts_mps.errors import PreflightError
from ts_mps.torchserve.addresses import Address, listeners
from ts_mps.torchserve.ports import busy_ports, port_problems


@pytest.fixture
def settings() -> dict[str, str]:
    """Five free ports."""
    ports = free_ports(5)
    names = ["inference", "management", "metrics"]
    rest = {f"{name}_address": f"http://127.0.0.1:{port}" for name, port in zip(names, ports, strict=False)}
    return {**rest, "grpc_inference_port": str(ports[3]), "grpc_management_port": str(ports[4])}


@pytest.fixture
def short_folder() -> Iterator[Path]:
    folder = tempfile.mkdtemp(dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder)


def taken(settings: dict[str, str], setting: str, host: str = "127.0.0.1") -> socket.socket:
    address = next(address for address in listeners(settings) if address.setting == setting)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, address.port))
    listener.listen()
    return listener


def messages(settings: dict[str, str]) -> list[str]:
    return [str(problem) for problem in port_problems(settings)]


def test_free_ports(settings: dict[str, str]) -> None:
    assert messages(settings) == []


@pytest.mark.parametrize("setting", ["inference_address", "metrics_address", "grpc_management_port"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_named_with_its_holder(settings: dict[str, str], setting: str, host: str) -> None:
    with taken(settings, setting, host):
        (message,) = messages(settings)
    assert message.startswith(f"{setting}: ")
    assert f"is taken by {Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})" in message


def test_every_taken_port_is_found(settings: dict[str, str]) -> None:
    with taken(settings, "inference_address"), taken(settings, "grpc_inference_port"):
        assert len(messages(settings)) == 2


def test_connections_in_time_wait_do_not_count(settings: dict[str, str]) -> None:
    with taken(settings, "inference_address") as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.close()  # the side that closes first keeps the port in TIME_WAIT
        client.close()
    assert messages(settings) == []


def test_the_metrics_port_counts_only_where_it_is_served(settings: dict[str, str]) -> None:
    with taken(settings, "metrics_address"):
        assert messages({**settings, "enable_metrics_api": "false"}) == []


def test_two_settings_with_one_address(settings: dict[str, str]) -> None:
    settings["metrics_address"] = settings["inference_address"].replace("127.0.0.1", "localhost")
    (message,) = messages(settings)
    assert message.startswith("inference_address and metrics_address are both http://127.0.0.1:")


def test_inference_and_management_may_share_an_address_only_without_tokens(settings: dict[str, str]) -> None:
    settings["management_address"] = settings["inference_address"]
    assert "none succeeds" in messages(settings)[0]
    assert messages({**settings, "disable_token_authorization": "true"}) == []


def test_hosts_that_cannot_be_bound() -> None:
    foreign = Address("inference_address", "192.0.2.1", 8080)
    unknown = Address("inference_address", "no-such-host.invalid", 8080)
    reasons = [busy.reason for busy in busy_ports([foreign, unknown])]
    assert reasons == ["is not an address of this machine", "names a host that cannot be resolved"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every port")
def test_low_ports_need_root() -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 1:
        pytest.skip("this machine lets every user bind every port")
    (busy,) = busy_ports([Address("inference_address", "127.0.0.1", 1)])
    assert busy.reason == "is a port that only root may use"


def test_unix_sockets(settings: dict[str, str], short_folder: Path) -> None:
    path = short_folder / "inference"
    settings["inference_address"] = f"unix:{path}"
    assert messages(settings) == []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert f"unix:{path} is taken" in messages(settings)[0]
    assert messages(settings) == []  # a socket file that nobody listens on is in nobody's way
    path.unlink()
    path.write_text("somebody's notes")
    assert "TorchServe would delete it" in messages(settings)[0]
    settings["inference_address"] = f"unix:{short_folder}/none/inference"
    assert "which is no folder" in messages(settings)[0]
    settings["inference_address"] = f"unix:{short_folder}/{'x' * 100}"
    assert "107 bytes" in messages(settings)[0]


def test_an_unreadable_address_is_refused(settings: dict[str, str]) -> None:
    settings["inference_address"] = "127.0.0.1:8080"
    with pytest.raises(PreflightError, match="inference_address"):
        port_problems(settings)

"""The REST client against a small server that answers as TorchServe 0.12.0 was seen to answer."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from ts_mps.errors import PreflightError
from ts_mps.torchserve.addresses import Address
from ts_mps.torchserve.api import Api, ModelStatus, WorkerStatus
from ts_mps.torchserve.client import ApiError
from ts_mps.torchserve.keys import Keys
from ts_mps.torchserve.tls import server_certificate

#: Self-signed pairs made for these tests: openssl req -x509 -newkey rsa:2048 -nodes, and one whose time is over.
TLS = Path(__file__).parents[1] / "data" / "tls"
REFUSAL = {
    "code": 400,
    "type": "InvalidKeyException",
    "message": "Token Authorization failed. Token either incorrect, expired, or not provided correctly",
}
DESCRIPTION = {
    "modelName": "digits",
    "modelVersion": "1.0",
    "minWorkers": 2,
    "maxWorkers": 3,
    "batchSize": 8,
    "workers": [
        {"id": "9000", "status": "READY", "pid": 41, "gpu": False, "gpuUsage": "N/A"},
        {"id": "9001", "status": "UNLOADING", "pid": -1, "gpu": False, "gpuUsage": "N/A"},
    ],
    "jobQueueStatus": {"remainingCapacity": 98, "pendingRequests": 2},
}


class FakeTorchServe:
    """Both APIs on one port; keys "m<n>", "i<n>" of generation n and the API key "root"."""

    def __init__(self, folder: Path, tokens: bool = True) -> None:
        self.key_file = folder / "key_file.json"
        self.tokens = tokens
        self.valid = {"management": "m0", "inference": "i0"}
        self.requests: list[tuple[str, str, str]] = []
        self.names = [f"model{number:03}" for number in range(250)]
        self.healthy = True
        self.renewals = 0
        self.write_keys()

    def write_keys(self) -> None:
        keys = {kind: {"key": key, "expiration time": "later"} for kind, key in self.valid.items()}
        self.key_file.write_text(json.dumps({**keys, "API": {"key": "root"}}))

    def expire(self) -> None:
        """As after token_expiration_min: the server takes the keys no more and the file still has them."""
        self.valid = {kind: "expired" for kind in self.valid}

    def answer(self, method: str, target: str, key: str, body: bytes) -> tuple[int, object]:
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.requests.append((method, target, key))
        if url.path == "/token":
            if key != "root":
                return 400, REFUSAL
            self.renewals += 1
            self.valid[query["type"]] = f"{query['type'][0]}{self.renewals}"
            self.write_keys()
            return 200, ""
        kind = "management" if url.path.startswith("/models") else "inference"
        if self.tokens and key != self.valid[kind]:
            return 400, REFUSAL
        if url.path == "/models":
            start, limit = int(query.get("next_page_token", 0)), int(query["limit"])
            page = {"models": [{"modelName": name, "modelUrl": "x"} for name in self.names[start : start + limit]]}
            if start + limit <= len(self.names):
                page["nextPageToken"] = str(start + limit)  # type: ignore[assignment]
            return 200, page
        if url.path == "/models/digits/all":
            return 200, [DESCRIPTION]
        if url.path == "/ping":
            return (200, {"status": "Healthy"}) if self.healthy else (500, {"status": "Unhealthy"})
        if url.path == "/predictions/digits":
            return 200, {"got": body.decode()}
        if url.path == "/predictions/bad":
            return 400, {"code": 400, "message": "the handler did not like it"}
        if method == "PUT":
            return 202, {"status": "Processing worker updates..."}
        return 404, {"code": 404, "type": "ModelNotFoundException", "message": f"Model not found: {url.path}"}


def serve(fake: FakeTorchServe, certificate: Path | None = None, path: str = "") -> Iterator[Address]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, value = fake.answer(self.command, self.path, key, body)
            answer = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT = do_POST = handle_any

        def address_string(self) -> str:
            return "client"

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_UNIX if path else socket.AF_INET
        daemon_threads = True

        def server_bind(self) -> None:
            self.socket.bind(path or ("127.0.0.1", 0))
            self.server_name, self.server_port = "x", 0

    server = Server(("127.0.0.1", 0), Handler)
    port = 0 if path else server.socket.getsockname()[1]
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_name(f"{certificate.stem}-key.pem"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    host = "" if path else "127.0.0.1"
    yield Address("management_address", host, port, https=certificate is not None, path=path)
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fake(tmp_path: Path) -> FakeTorchServe:
    return FakeTorchServe(tmp_path)


@pytest.fixture
def address(fake: FakeTorchServe) -> Iterator[Address]:
    yield from serve(fake)


@pytest.fixture
def api(fake: FakeTorchServe, address: Address) -> Api:
    return Api(address, address, key_file=fake.key_file)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    folder = tempfile.mkdtemp(dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder)


def test_lists_all_pages(api: Api, fake: FakeTorchServe) -> None:
    assert api.models() == tuple(fake.names)
    assert len(fake.requests) == 3


def test_describes_workers(api: Api) -> None:
    workers = (WorkerStatus("9000", 41, "READY", "N/A"), WorkerStatus("9001", -1, "UNLOADING", "N/A"))
    assert api.describe("digits") == (ModelStatus("digits", "1.0", 2, 3, 8, workers, 2),)
    assert [worker.ready for worker in workers] == [True, False]


def test_scale_names_the_version_and_both_limits(api: Api, fake: FakeTorchServe) -> None:
    api.scale("a model", "1.0", 4)
    method, target, _ = fake.requests[-1]
    assert (method, target) == ("PUT", "/models/a%20model/1.0?min_worker=4&max_worker=4&synchronous=false")


def test_ping_and_predict(api: Api, fake: FakeTorchServe) -> None:
    assert api.ping()
    assert json.loads(api.predict("digits", b"12", "text/plain")) == {"got": "12"}
    fake.healthy = False
    assert not api.ping()


def test_without_token_authorisation_no_key_is_sent(tmp_path: Path) -> None:
    fake = FakeTorchServe(tmp_path, tokens=False)
    for address in serve(fake):
        assert Api(address, address).ping()
    assert fake.requests == [("GET", "/ping", "")]


def test_keys_renewed_by_somebody_else_are_read_again(api: Api, fake: FakeTorchServe) -> None:
    assert api.ping()
    fake.valid = {"management": "m7", "inference": "i7"}
    fake.write_keys()
    assert api.ping()
    assert fake.renewals == 0


def test_expired_keys_are_renewed_once_for_many_threads(api: Api, fake: FakeTorchServe) -> None:
    assert api.ping()
    fake.expire()
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(api.ping())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 6
    assert fake.renewals == 1


def test_a_deleted_key_file_does_not_matter_to_who_knew_it(api: Api, fake: FakeTorchServe) -> None:
    assert api.ping()
    fake.key_file.unlink()
    assert api.ping()
    fake.expire()
    assert api.ping()
    assert fake.key_file.exists()


def test_a_key_file_that_was_never_there_is_named(api: Api, fake: FakeTorchServe) -> None:
    fake.key_file.unlink()
    with pytest.raises(ApiError, match=r"its key file .*key_file\.json is not there") as caught:
        api.models()
    assert caught.value.status == 400
    assert caught.value.exit_code == 6


def test_keys_of_another_server_are_named_and_never_shown(api: Api, fake: FakeTorchServe) -> None:
    fake.key_file.write_text(fake.key_file.read_text().replace("root", "secret-api").replace("m0", "secret-m"))
    with pytest.raises(ApiError, match="refuses the management key") as caught:
        api.models()
    shown = f"{caught.value!r} {caught.value} {caught.value.details} {Keys('secret-m', 'secret-i', 'secret-api')!r}"
    assert "secret" not in shown


def test_an_error_of_the_handler_is_no_reason_to_ask_twice(api: Api, fake: FakeTorchServe) -> None:
    with pytest.raises(ApiError, match="answered POST /predictions/bad with 400") as caught:
        api.predict("bad", b"")
    assert caught.value.status == 400
    assert "did not like it" in caught.value.details
    assert len(fake.requests) == 1


def test_unknown_model(api: Api) -> None:
    with pytest.raises(ApiError) as caught:
        api.describe("nobody")
    assert caught.value.status == 404


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = Address("management_address", "127.0.0.1", reserved.getsockname()[1])
        api = Api(address, address)
        assert not api.ping()
        with pytest.raises(ApiError, match=r"cannot be reached at http://127\.0\.0\.1:") as caught:
            api.models()
    assert caught.value.status == 0


def test_a_silent_server_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = Address("management_address", "127.0.0.1", silent.getsockname()[1])
        with pytest.raises(ApiError, match=r"did not answer GET /models within 0\.2 s"):
            Api(address, address, timeout=0.2).models()


def test_the_environment_does_not_divert_calls(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert api.ping()


def test_all_interfaces_are_called_on_loopback(fake: FakeTorchServe, address: Address) -> None:
    everywhere = Address("inference_address", "0.0.0.0", address.port)
    assert Api(everywhere, everywhere, key_file=fake.key_file).ping()


def test_unix_sockets(fake: FakeTorchServe, short_folder: Path) -> None:
    for address in serve(fake, path=str(short_folder / "s")):
        api = Api(address, address, key_file=fake.key_file)
        assert api.ping()
        assert len(api.models()) == 250


@pytest.mark.parametrize(("name", "other"), [("valid", "expired"), ("expired", "valid")])
def test_https_trusts_the_configured_certificate_only(fake: FakeTorchServe, name: str, other: str) -> None:
    own = TLS / f"{name}.pem"
    for address in serve(fake, certificate=own):
        assert Api(address, address, key_file=fake.key_file, certificate=own).ping()
        with pytest.raises(ApiError, match="shows another certificate"):
            Api(address, address, key_file=fake.key_file, certificate=TLS / f"{other}.pem").models()


def test_certificate_file_of_the_configuration(tmp_path: Path) -> None:
    settings = {"management_address": "https://x:1", "certificate_file": str(TLS / "valid.pem")}
    with pytest.raises(PreflightError, match="names no certificate"):
        server_certificate(settings, "java", tmp_path)
    settings["private_key_file"] = str(TLS / "valid-key.pem")
    assert server_certificate(settings, "java", tmp_path) == TLS / "valid.pem"


def test_certificate_files_are_checked(tmp_path: Path) -> None:
    settings = {"inference_address": "https://x:1", "certificate_file": str(tmp_path / "c"), "private_key_file": "k"}
    with pytest.raises(PreflightError, match="is not a file"):
        server_certificate(settings, "java", tmp_path)
    (tmp_path / "c").write_text("no PEM")
    with pytest.raises(PreflightError, match="is not a file"):
        server_certificate(settings, "java", tmp_path)
    settings["private_key_file"] = str(tmp_path / "c")
    with pytest.raises(PreflightError, match="holds no PEM certificate"):
        server_certificate(settings, "java", tmp_path)
    assert server_certificate({"inference_address": "http://x:1"}, "java", tmp_path) is None


def test_keystore_needs_the_keytool_beside_java(tmp_path: Path) -> None:
    settings = {"inference_address": "https://x:1", "keystore": str(tmp_path / "none.p12")}
    with pytest.raises(PreflightError, match="no keytool beside"):
        server_certificate(settings, str(tmp_path / "java"), tmp_path)


def test_keystore_password_is_not_on_a_command_line(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    keytool = tmp_path / "keytool"
    certificate = TLS / "valid.pem"
    keytool.write_text(f'#!/bin/sh\necho "$@" > {seen}\necho "$TS_MPS_KEYSTORE_PASS" >> {seen}\ncat {certificate}\n')
    keytool.chmod(0o755)
    settings = {"inference_address": "https://x:1", "keystore": "store.p12", "keystore_pass": "geheim"}
    found = server_certificate(settings, str(tmp_path / "java"), tmp_path)
    assert found is not None
    assert found.read_text() == certificate.read_text()
    assert seen.read_text().splitlines() == [
        "-list -rfc -keystore store.p12 -storepass:env TS_MPS_KEYSTORE_PASS -storetype PKCS12",
        "geheim",
    ]

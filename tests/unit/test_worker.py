"""The worker's LOAD step on TorchServe's own loader, and the script through which TorchServe starts a worker."""

from __future__ import annotations

import builtins
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ts import model_service_worker as stock
from ts.arg_parser import ArgParser

from ts_mps.errors import MpsError
from ts_mps.events import recorded
from ts_mps.files import write_json
from ts_mps.holds import Hold, hold_back
from ts_mps.paths import Home, InstancePaths
from ts_mps.plan.model import Plan, PlannedGpu, Slot
from ts_mps.profile.messages import load_message
from ts_mps.slots import claim
from ts_mps.torchserve import numerics
from ts_mps.torchserve import worker as module
from ts_mps.torchserve.attach import environment, share_of
from ts_mps.torchserve.config import DATA
from ts_mps.torchserve.failures import KEPT, WorkerFailure, failures, record_failure
from ts_mps.torchserve.worker import NotLoaded, Worker
from ts_mps.torchserve.wrapper import wrapper_script
from ts_mps.worker_records import Proof, batch_of, busy, workers

UUID = "GPU-00000000-0000-4000-8000-000000000000"

HANDLER = """
class Handler:
    def initialize(self, context):
        {body}

    def handle(self, data, context):
        return data
"""


@pytest.fixture
def home(short_dir: Path) -> Home:
    home = Home(short_dir / "home")
    home.instance("default").slots.mkdir(parents=True)
    home.gpu(UUID).seats.mkdir(parents=True)
    return home


@pytest.fixture
def instance(home: Home) -> InstancePaths:
    return home.instance("default")


def write_plan(instance: InstancePaths, *, workers: int = 1, cap: int | None = None, gpu: bool = False) -> Plan:
    gpus = (PlannedGpu(0, UUID, "NVIDIA H200", cap),) if gpu else ()
    uuid = UUID if gpu else None
    plan = Plan(gpus, tuple(Slot(number, "m", "1.0", uuid, threads=1) for number in range(workers)))
    write_json(instance.plan, plan.as_json())
    return plan


@pytest.fixture
def worker(home: Home, instance: InstancePaths, short_dir: Path, monkeypatch) -> Iterator[Worker]:
    """A worker as TorchServe starts it, up to the LOAD message; it notes its share instead of taking it."""
    taken: list[object] = []
    monkeypatch.setattr(module, "take_share", lambda slot, variables: taken.append((slot.number, variables)))
    socket, metrics = str(short_dir / ".ts.sock.9000"), str(DATA / "metrics.yaml")
    words = ["--sock-type", "unix", "--sock-name", socket, "--metrics-config", metrics]
    made = Worker(home, instance, ArgParser.model_service_worker_args().parse_args(words))
    made.taken = taken
    yield made
    made.sock.close()


@pytest.fixture
def message(short_dir: Path, monkeypatch):
    """TorchServe's LOAD message for a handler with this body of its initialize."""

    def make(body: str, **more: object) -> dict[str, object]:
        folder = short_dir / "model"
        (folder / "MAR-INF").mkdir(parents=True)
        manifest = {"model": {"modelName": "m", "modelVersion": "1.0", "handler": "x.py"}}
        (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
        name = f"handler_{short_dir.name}"  # a module's name is imported once in a process
        (folder / f"{name}.py").write_text(HANDLER.format(body=body))
        monkeypatch.syspath_prepend(folder)
        return {
            "modelPath": str(folder).encode(),
            "modelName": b"m",
            "handler": f"{name}.py".encode(),
            "batchSize": b"1",
            **more,
        }

    return make


class TestLoad:
    def test_a_handler_is_loaded_in_its_slot(self, worker, instance, message):
        write_plan(instance)
        service, text, code = worker.load_model(message("self.ready = True"))
        assert (text, code) == ("loaded model m", 200)
        assert service.context.model_name == "m"
        (record,) = workers(instance)
        assert (record.state, record.slot.number, record.slot.version) == ("ready", 0, "1.0")
        assert record.socket == worker.sock_name
        assert failures(instance) == ()

    def test_on_a_gpu_the_handler_is_given_device_0_and_the_slots_environment(self, worker, instance, message):
        plan = write_plan(instance, gpu=True)
        request = message("self.gpu = context.system_properties['gpu_id']", gpu=5)
        service, _, code = worker.load_model(request)
        assert code == 200
        assert service.context.system_properties["gpu_id"] == 0
        assert worker.taken == [(0, environment(plan.slots[0], plan.gpus[0], instance.no_mps))]

    def test_the_share_is_taken_before_the_handler_is_imported(self, worker, instance, message, monkeypatch):
        write_plan(instance)
        monkeypatch.setattr(module, "take_share", lambda *_: (_ for _ in ()).throw(ValueError("not yet imported")))
        request = message("pass")
        with pytest.raises(ValueError, match="not yet imported"):
            worker.load_model(request)
        assert Path(request["handler"].decode()).stem not in sys.modules

    def test_what_it_got_is_recorded(self, worker, instance, message):
        write_plan(instance, gpu=True)
        assert worker.load_model(message("pass", gpu=0))[2] == 200
        (record,) = workers(instance)
        assert record.got == share_of(PlannedGpu(0, UUID, "NVIDIA H200"))
        assert record.got.cores == tuple(sorted(os.sched_getaffinity(0))) and record.got.checked is None

    def test_a_refusal_is_recorded_with_our_sentence(self, worker, home, instance, message, monkeypatch):
        plan = write_plan(instance, workers=2, cap=1, gpu=True)
        held = claim(home, instance, plan, "m", "1.0", on_gpu=True)
        monkeypatch.setattr(module, "claim", lambda *words, **named: claim(*words, **named, grace=0.0))
        request = message("pass", gpu=0)
        with pytest.raises(NotLoaded) as refused:
            worker.load_model(request)
        text = str(refused.value)
        assert "already has 1 of 1 MPS clients" in text and "refused before it touched CUDA" in text
        (failure,) = failures(instance)
        assert (failure.what, failure.traceback, failure.pid) == (text, "", os.getpid())
        assert worker.taken == [] and Path(request["handler"].decode()).stem not in sys.modules
        assert [record.slot.number for record in workers(instance)] == [held.record.slot.number]

    def test_the_process_of_a_refused_worker_closes_its_connection_without_a_word(
        self, home, instance, message, short_dir
    ):
        """TorchServe gathers requests for a worker whose LOAD is answered, whatever the answer says."""
        write_plan(instance)
        hold_back(instance, {0: Hold("It crashed again and again.")})
        folder = message("pass")["modelPath"].decode()
        name = str(short_dir / ".ts.sock.9001")
        words = ["--sock-type", "unix", "--sock-name", name, "--metrics-config", str(DATA / "metrics.yaml")]
        command = [sys.executable, "-m", "ts_mps.torchserve.worker", str(home.root), "default", "--", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with socket.socket(socket.AF_UNIX) as frontend:
            frontend.settimeout(60)
            while True:
                try:
                    frontend.connect(name)
                    break
                except OSError:
                    assert process.poll() is None
                    time.sleep(0.05)
            frontend.sendall(load_message("m", folder, 1, "handler.py", None))
            assert frontend.recv(1) == b""
        told, _ = process.communicate(timeout=30)
        assert process.returncode == 1 and "held back: It crashed again and again." in told
        assert "Traceback" not in told and not Path(name).exists()
        assert "are held back" in failures(instance)[0].what

    def test_a_value_error_is_recorded_and_ends_the_worker_as_in_torchserve(self, worker, instance, message):
        write_plan(instance)
        with pytest.raises(ValueError, match="wrong weights"):
            worker.load_model(message("raise ValueError('wrong weights')"))
        (failure,) = failures(instance)
        assert (failure.model, failure.version) == ("m", "1.0")
        assert failure.what == "ValueError: wrong weights"
        assert "in initialize" in failure.traceback

    @pytest.mark.parametrize(("text", "code"), [("no such layer", 500), ("CUDA out of memory", 507)])
    def test_a_runtime_error_that_torchserve_swallows_is_recorded_too(self, worker, instance, message, text, code):
        write_plan(instance)
        with pytest.raises(NotLoaded, match=f"^{code} - "):
            worker.load_model(message(f"raise RuntimeError('{text}')"))
        (failure,) = failures(instance)
        assert failure.what == f"RuntimeError: {text}"
        assert "in initialize" in failure.traceback

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_a_worker_that_loses_its_gpu_while_it_loads_leaves_without_an_answer(
        self, worker, instance, message, monkeypatch, wrapped
    ):
        def leave():
            raise SystemExit(70)

        monkeypatch.setattr(module, "leave", leave)
        write_plan(instance, gpu=True)
        raised = "raise torch.AcceleratorError('CUDA error: an illegal memory access was encountered')"
        body = f"try: {raised}\n        except RuntimeError: raise ValueError('no model')" if wrapped else raised
        with pytest.raises(SystemExit):
            worker.load_model(message(f"import torch\n        {body}", gpu=0))
        (failure,) = failures(instance)
        assert failure.again and "Error" in failure.what
        (event,) = recorded(instance)
        assert (event.kind, event.cause, event.gpu, event.model, event.pid) == (
            "worker-fault",
            "cuda-error-700",
            UUID,
            "m",
            os.getpid(),
        )
        assert event.text == (
            "A worker of model m lost GPU 0 (NVIDIA H200, GPU-00000000): CUDA error 700: "
            "an illegal memory access was encountered."
        )

    def test_without_a_plan_the_reason_is_recorded(self, worker, instance, message):
        with pytest.raises(ValueError, match="a plan of version None"):
            worker.load_model(message("pass"))
        assert "a plan of version None" in failures(instance)[0].what


class TestLimits:
    """A worker with a thread percentage, as a client of a daemon that is not asked here."""

    PERCENTAGE = 37.5

    @pytest.fixture
    def steps(self, worker, instance, monkeypatch) -> list[object]:
        """What was done up to the load, in order."""
        done: list[object] = []
        gpu = PlannedGpu(0, UUID, "NVIDIA H200", 4, "/pipe")
        write_json(
            instance.plan,
            Plan((gpu,), (Slot(0, "m", "1.0", UUID, thread_percentage=self.PERCENTAGE, priority=1),)).as_json(),
        )

        def take(slot, variables):
            done.append("share")
            for name, value in variables.items():
                monkeypatch.setenv(name, value)

        def check(gpu, percentage):
            done.append(("check", gpu.uuid, percentage))
            return 0.25

        monkeypatch.setattr(module, "take_share", take)
        monkeypatch.setattr(module, "Control", lambda pipe: SimpleNamespace(pipe=pipe))
        monkeypatch.setattr(module, "wait_for_daemon", lambda gpu, control: done.append(("daemon", str(control.pipe))))
        monkeypatch.setattr(module, "prove", lambda gpu, control, model: Proof(462, 1.0))
        monkeypatch.setattr(worker, "attached", lambda: done.append("attached"))
        monkeypatch.setattr(numerics, "check", check)
        return done

    def test_the_share_is_taken_and_checked_before_the_handler(self, worker, instance, message, steps):
        request = message("import builtins; builtins.steps_seen = list(builtins.steps)", gpu=0)
        builtins.steps = steps
        try:
            assert worker.load_model(request)[2] == 200
            assert builtins.steps_seen == steps
        finally:
            del builtins.steps, builtins.steps_seen
        assert steps == ["share", ("daemon", "/pipe"), "attached", ("check", UUID, self.PERCENTAGE)]
        (record,) = workers(instance)
        assert record.got == replace(share_of(PlannedGpu(0, UUID, "", 4, "/pipe")), checked=0.25)
        assert (record.got.thread_percentage, record.got.priority) == (self.PERCENTAGE, 1)

    def test_wrong_arithmetic_refuses_the_worker_before_its_handler_is_imported(
        self, worker, instance, message, steps, monkeypatch
    ):
        def check(gpu, percentage):
            raise MpsError("It computes wrong results.", "Another percentage.", "evidence")

        monkeypatch.setattr(numerics, "check", check)
        request = message("pass", gpu=0)
        text = "It computes wrong results. Another percentage."
        with pytest.raises(NotLoaded, match=re.escape(text)):
            worker.load_model(request)
        assert Path(request["handler"].decode()).stem not in sys.modules
        (failure,) = failures(instance)
        assert (failure.what, failure.traceback, failure.again) == (text, "evidence", False)
        assert [record.state for record in workers(instance)] == ["loading"]

    @pytest.mark.parametrize(("users", "checked"), [("50", 0.25), ("", None)])
    def test_a_percentage_of_the_users_environment_is_checked_too(
        self, worker, instance, message, steps, monkeypatch, users, checked
    ):
        gpu = PlannedGpu(0, UUID, "NVIDIA H200", 4, "/pipe")
        write_json(instance.plan, Plan((gpu,), (Slot(0, "m", "1.0", UUID),)).as_json())
        monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", users)
        assert worker.load_model(message("pass", gpu=0))[2] == 200
        assert next(workers(instance)).got.checked == checked

    def test_without_mps_there_is_no_limit_to_check(self, worker, instance, message, steps, monkeypatch):
        write_plan(instance, gpu=True)
        monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "50")
        assert worker.load_model(message("pass", gpu=0))[2] == 200
        assert steps == ["share", "attached"]
        assert next(workers(instance)).got.thread_percentage is None


class TestActivity:
    def service(self, worker, instance, monkeypatch, predict):
        write_plan(instance)
        service = SimpleNamespace(predict=predict, _entry_point=None, context=SimpleNamespace(model_yaml_config={}))
        service.set_cl_socket = lambda connection: setattr(service, "cl_socket", connection)
        loaded = (service, "loaded", 200)
        monkeypatch.setattr(stock.TorchModelServiceWorker, "load_model", lambda *_: loaded)
        service, _, _ = worker.load_model({"modelName": b"m", "modelPath": b"/none"})
        return service

    def test_a_worker_is_busy_inside_a_batch_only(self, worker, instance, monkeypatch):
        def predict(batch):
            return [len(busy(instance)), batch]

        service = self.service(worker, instance, monkeypatch, predict)
        assert busy(instance) == ()
        assert service.predict("batch") == [1, "batch"]
        assert busy(instance) == ()

    def test_a_batch_that_raises_ends_too(self, worker, instance, monkeypatch):
        def predict(batch):
            raise KeyError(batch)

        service = self.service(worker, instance, monkeypatch, predict)
        with pytest.raises(KeyError, match="batch"):
            service.predict("batch")
        assert busy(instance) == ()

    def test_each_part_of_a_streamed_answer_counts_as_a_batch(self, worker, instance, monkeypatch):
        """TorchServe's response timeout begins anew with each part, so what streams does not hang."""
        ours, theirs = socket.socketpair()

        def predict(batch):
            numbers = [batch_of(instance, 0)]
            for part in batch:
                service.cl_socket.sendall(part)
                numbers.append(batch_of(instance, 0))
            return numbers

        service = self.service(worker, instance, monkeypatch, predict)
        service.set_cl_socket(ours)
        assert service.predict([b"one", b"two"]) == [1, 2, 3]
        assert theirs.recv(64) == b"onetwo" and service.cl_socket.fileno() == ours.fileno()
        assert busy(instance) == ()
        assert service.predict([]) == [4]
        ours.close()
        theirs.close()

    def test_with_async_comm_predict_stays_torchserves(self, worker, instance, monkeypatch):
        worker.async_comm = True

        def predict(batch):
            return batch

        assert self.service(worker, instance, monkeypatch, predict).predict is predict


class TestFailures:
    def test_the_newest_are_kept_oldest_first(self, instance):
        for number in range(KEPT + 5):
            record_failure(instance, WorkerFailure(number, "m", None, "what", "", clock=1000.0 + number))
        kept = failures(instance)
        assert [failure.pid for failure in kept] == list(range(5, KEPT + 5))
        assert [failure.pid for failure in failures(instance, since=1000.0 + KEPT + 4)] == [KEPT + 4]

    def test_there_are_none_before_the_first(self, instance):
        assert failures(instance) == ()


#: Says what it was called with and its pid, in place of an interpreter.
FAKE_PYTHON = """#!/bin/sh
printf '%s\\n' $$ "$@"
"""


class TestWrapper:
    @pytest.fixture(params=["plain", "with blank", "$HOME", "it's", 'quote"s', "`id`", "a;b&c"])
    def script(self, request, short_dir: Path):
        """The script of a runtime folder and an interpreter with such a name."""
        folder = short_dir / request.param
        folder.mkdir()
        python = folder / "python"
        python.write_text(FAKE_PYTHON)
        home = Home(folder)
        path = folder / "worker-python"
        path.write_text(wrapper_script(str(python), home, home.instance("default")))
        for file in (python, path):
            file.chmod(0o700)
        return path

    def run(self, script: Path, *words: str) -> tuple[int, list[str]]:
        with subprocess.Popen([script, *words], stdout=subprocess.PIPE, text=True) as process:
            output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        pid, *lines = output.splitlines()
        assert int(pid) == process.pid, "TorchServe kills a worker by the pid that it started"
        return process.pid, lines

    def test_a_worker_becomes_ours(self, script):
        words = ["--sock-type", "unix", "--sock-name", "/tmp/a b/.ts.sock.9000"]
        _, lines = self.run(script, "/site packages/ts/model_service_worker.py", *words)
        assert lines == ["-m", "ts_mps.torchserve.worker", str(script.parent), "default", "--", *words]

    @pytest.mark.parametrize(
        "words",
        [
            ["-m", "pip", "install", "-r", "a b.txt"],
            ["/x/ts_mps/torchserve/metrics.py", "--gpus", "GPU-1", "0"],
            ["-c", "print('$HOME')"],
            ["/x/model_service_worker.py.bak"],
            [],
        ],
        ids=" ".join,
    )
    def test_everything_else_goes_straight_to_the_interpreter(self, script, words):
        assert self.run(script, *words)[1] == words

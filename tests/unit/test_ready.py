"""Every way in which waiting for a start ends, against a stub of TorchServe's API."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ts_mps.errors import NotReadyError
from ts_mps.guardian.ready import Evidence, Expected, wait_ready
from ts_mps.guardian.signals import Interrupted
from ts_mps.paths import Home, InstancePaths
from ts_mps.plan.model import Plan, PlannedGpu, Slot
from ts_mps.slots import Claim, claim
from ts_mps.torchserve.api import ModelStatus, WorkerStatus
from ts_mps.torchserve.client import ApiError
from ts_mps.torchserve.failures import WorkerFailure, record_failure
from ts_mps.worker_records import Proof

UUID = "GPU-00000000-0000-4000-8000-000000000000"


class StubApi:
    """TorchServe's word about its models; each READY worker is this process."""

    def __init__(self, **models: int) -> None:
        self.minimum = dict(models)
        self.ready = dict(models)
        self.answers = True
        self.pid = os.getpid()
        self.scaled: list[tuple[str, str, int]] = []

    def models(self) -> tuple[str, ...]:
        if not self.answers:
            raise ApiError("TorchServe's management API does not answer.")
        return tuple(self.minimum)

    def describe(self, name: str) -> tuple[ModelStatus, ...]:
        rows = tuple(WorkerStatus(str(9000 + n), self.pid, "READY", "N/A") for n in range(self.ready[name]))
        return (ModelStatus(name, "1.0", self.minimum[name], self.minimum[name], 1, rows, 0),)

    def scale(self, name: str, version: str, count: int) -> None:
        self.scaled.append((name, version, count))
        self.minimum[name] = self.ready[name] = count


class Start:
    """One start: its folder, its slots, and what is told on the way."""

    def __init__(self, home: Home, logs: Path) -> None:
        self.home, self.logs = home, logs
        self.paths: InstancePaths = home.instance("default")
        self.claims: list[Claim] = []
        self.reports: list[str] = []
        self.java: int | None = None
        #: What happens at the n-th pause.
        self.events: list[Callable[[], object]] = []

    def claim(self, model: str = "m", *, gpu: bool = False, ready: bool = True, proof: Proof | None = None) -> None:
        plan = Plan(
            (PlannedGpu(0, UUID, "NVIDIA H200", 4, "/pipe"),) if gpu else (),
            tuple(Slot(number, model, "1.0", UUID if gpu else None) for number in range(9)),
        )
        held = claim(self.home, self.paths, plan, model, "1.0", on_gpu=gpu)
        if ready:
            held.ready(proof)
        self.claims.append(held)

    def pause(self, seconds: float) -> None:
        if self.events:
            self.events.pop(0)()

    def wait(self, api: StubApi, expected: Expected, timeout: float = 30.0) -> tuple[ModelStatus, ...]:
        return wait_ready(
            self.paths,
            api,
            expected,
            Evidence(self.logs / "torchserve.out", self.logs),
            timeout=timeout,
            java_status=lambda: self.java,
            pause=self.pause,
            report=self.reports.append,
        )


@pytest.fixture
def start(tmp_path: Path) -> Start:
    home = Home(tmp_path / "home")
    home.instance("default").slots.mkdir(parents=True)
    home.gpu(UUID).seats.mkdir(parents=True)
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "ts_log.log").write_text("a line of ts_log\n")
    return Start(home, logs)


def models(*names: str, proven: bool = False, **more: object) -> Expected:
    return Expected(names, more.pop("scale", {}), proven, **more)


class TestReady:
    def test_as_soon_as_slots_and_torchserve_agree(self, start):
        api = StubApi(m=2)
        start.events = [start.claim, lambda: None, start.claim]
        (status,) = start.wait(api, models("m"))
        assert status.name == "m" and len(status.workers) == 2
        assert start.reports == ["1 of 2 workers ready", "2 of 2 workers ready"]

    def test_an_api_that_does_not_answer_yet_is_waited_for(self, start):
        api = StubApi(m=1)
        api.answers = False
        start.claim()
        start.events = [lambda: None] * 3 + [lambda: setattr(api, "answers", True)]
        assert len(start.wait(api, models("m"))) == 1
        assert start.events == []

    def test_a_slot_that_still_loads_does_not_count(self, start):
        start.claim(ready=False)
        start.events = [lambda: None, lambda: start.claims[0].ready(None)]
        start.wait(StubApi(m=1), models("m"))
        assert start.reports == ["0 of 1 workers ready", "1 of 1 workers ready"]

    def test_with_mps_a_worker_on_a_gpu_without_proof_does_not_count(self, start):
        start.claim(gpu=True)
        start.events = [lambda: None, lambda: start.claims[0].ready(Proof(462, 1.0))]
        start.wait(StubApi(m=1), models("m", proven=True))
        assert start.reports == ["0 of 1 workers ready", "1 of 1 workers ready"]

    def test_with_mps_a_worker_on_the_cpu_needs_no_proof(self, start):
        start.claim()
        assert start.wait(StubApi(m=1), models("m", proven=True))

    def test_the_scale_that_was_asked_for_is_asked_of_torchserve_once(self, start):
        api = StubApi(m=1, other=1)
        for model in ("m", "m", "other"):
            start.claim(model)
        start.wait(api, models("m", "other", scale={("m", "1.0"): 2, ("other", ""): 1}))
        assert api.scaled == [("m", "1.0", 2)]

    def test_a_model_whose_workers_hold_no_slots_counts_by_torchserves_word(self, start):
        api = StubApi(m=2)
        api.pid = 1
        assert start.wait(api, models("m", unmanaged=frozenset({"m"})))

    def test_no_models_is_ready_at_once(self, start):
        assert start.wait(StubApi(), models()) == ()


class TestNotReady:
    @pytest.mark.parametrize(("status", "how"), [(1, "with status 1"), (-9, "by signal 9")])
    def test_java_ended(self, start, status, how):
        (start.logs / "torchserve.out").write_text("Error: Could not create the Java Virtual Machine.\n")
        start.java = status
        with pytest.raises(NotReadyError, match=f"TorchServe ended {how}") as error:
            start.wait(StubApi(), models("m"))
        assert "Could not create the Java Virtual Machine" in error.value.details
        assert "a line of ts_log" in error.value.details

    def test_a_worker_did_not_load(self, start):
        lines = "\n".join(f"line {number}" for number in range(50))
        failure = WorkerFailure(7, "m", "1.0", "ValueError: wrong weights", lines)
        start.events = [lambda: record_failure(start.paths, failure)]
        with pytest.raises(NotReadyError) as error:
            start.wait(StubApi(m=1), models("m"))
        assert error.value.what == "A worker of model m (version 1.0) did not load: ValueError: wrong weights"
        assert "line 49" in error.value.details and "line 29" not in error.value.details

    def test_a_refused_worker_has_no_traceback_to_promise(self, start):
        start.events = [lambda: record_failure(start.paths, WorkerFailure(7, "m", None, "GPU 0 is full.", ""))]
        with pytest.raises(NotReadyError, match="model m did not load: GPU 0 is full") as error:
            start.wait(StubApi(m=1), models("m"))
        assert "traceback" not in error.value.remedy and error.value.details == ""

    def test_a_worker_that_may_well_load_the_next_time_gets_a_second_chance(self, start):
        missed = [WorkerFailure(pid, "m", None, "not in the client list", "", again=True) for pid in (7, 8)]
        start.events = [lambda: [record_failure(start.paths, one) for one in missed], start.claim]
        assert start.wait(StubApi(m=1), models("m"))

    def test_not_more_than_a_few_of_them(self, start):
        missed = [WorkerFailure(pid, "m", None, "not in the client list", "", again=True) for pid in (7, 8, 9)]
        start.events = [lambda: [record_failure(start.paths, one) for one in missed]]
        with pytest.raises(NotReadyError, match="not in the client list"):
            start.wait(StubApi(m=1), models("m"))

    def test_a_failure_of_an_earlier_start_does_not_count(self, start):
        record_failure(start.paths, WorkerFailure(7, "m", None, "old", "", clock=-1000.0))
        start.claim()
        assert start.wait(StubApi(m=1), models("m"))

    def test_a_model_was_not_registered(self, start):
        with pytest.raises(NotReadyError, match="did not register model b, c") as error:
            start.wait(StubApi(a=1), models("a", "b", "c"))
        assert "a line of ts_log" in error.value.details

    def test_torchserve_refuses_to_scale(self, start, monkeypatch):
        api = StubApi(m=1)

        def refuse(*_):
            raise ApiError("TorchServe refused to scale m.")

        monkeypatch.setattr(api, "scale", refuse)
        with pytest.raises(ApiError, match="refused to scale"):
            start.wait(api, models("m", scale={("m", "1.0"): 2}))

    @pytest.mark.parametrize("missing", ["a slot", "READY", "the same process"])
    def test_the_time_ran_out(self, start, missing):
        api = StubApi(m=2)
        start.claim()
        if missing != "a slot":
            start.claim()
        if missing == "READY":
            api.ready["m"] = 1
        if missing == "the same process":
            api.pid = 1
        done = 1 if missing == "a slot" else 2
        with pytest.raises(NotReadyError, match=rf"after 0\.05 s \({done} of 2 workers ready\)") as error:
            start.wait(api, models("m"), timeout=0.05)
        assert "--wait-timeout" in error.value.remedy and "a line of ts_log" in error.value.details

    def test_the_time_ran_out_before_torchserve_answered(self, start):
        api = StubApi(m=1)
        api.answers = False
        with pytest.raises(NotReadyError, match="TorchServe does not answer yet"):
            start.wait(api, models("m"), timeout=0.05)

    def test_an_interruption_goes_through(self, start):
        def interrupt():
            raise Interrupted(15)

        start.events = [lambda: None, interrupt]
        with pytest.raises(Interrupted):
            start.wait(StubApi(m=1), models("m"))


def test_the_slots_are_looked_at_more_often_than_torchserve(start, monkeypatch):
    """Describing a model makes TorchServe start an nvidia-smi per worker, so it is asked when the slots say ready."""
    api = StubApi(m=1)
    asked: list[str] = []
    monkeypatch.setattr(api, "models", lambda: asked.append("models") or ("m",))
    start.events = [lambda: None] * 20 + [start.claim]
    start.wait(api, models("m"))
    assert len(asked) == 2, "once to see what is registered, once for its word that all is ready"

"""An instance's files as Prometheus series, and what the frontend is told over several collections."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import yaml
from watching import PLAN, UUID, bert, instance, watched

from ts_mps.files import try_lock
from ts_mps.guardian.metrics import LOOK_NAMES, WORKER_NAMES, samples
from ts_mps.guardian.watched import WatchedGpu
from ts_mps.plan.model import Slot
from ts_mps.torchserve.config import DATA
from ts_mps.worker_records import Share, WorkerRecord

#: What a look may hold at its fullest, so that every series appears.
FULL = watched(
    java_restarts=1,
    gpus=(WatchedGpu(UUID, 0, "running", "ACTIVE, FAULT", 2, 48),),
    models=bert(ready=1, attached=1, held={"It crashed.": 1}, restarts={"cuda-error-700": 2}),
    faults={f"server-fault {UUID}": 2, "java-gone": 1},
    recovery_seconds=(9.0, 4.5),
)
SLOT = Slot(0, "bert", "1.0", UUID, thread_percentage=50.0)
WORKER = WorkerRecord(SLOT, True, 123, 1, "ready", 1.0, got=Share(66, 50.0, 1536 * 2**20, 1, (0, 1)))
FREE = WorkerRecord(replace(SLOT, number=1), True, 124, 1, "ready", 1.0, got=Share(132, None, None, None, (2,)))
LOADING = WorkerRecord(replace(SLOT, number=1), True, 125, 1, "loading", 1.0)
ON_CPU = WorkerRecord(PLAN.slots[2], True, 126, 1, "ready", 1.0, got=Share(None, None, None, None, (3,)))


@pytest.fixture
def collect(tmp_path):
    """One collection; name -> {labels: value} of what the frontend is told."""
    paths = instance(tmp_path)

    def once(look=FULL, living=(), java="10:1", now=None):
        if look is not None:
            # FULL was made when the tests began, and looks grow old.
            (replace(look, clock=time.monotonic()) if look is FULL else look).save(paths)
        told = samples(
            paths,
            living,
            java=java,
            resident={123: 2**30},
            on_gpu={123: 2**31},
            activity={UUID: 0.75},
            now=time.time() if now is None else now,
        )
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for sample in told:
            values = found.setdefault(sample.name, {})
            key = tuple(value for _, value in sample.labels)
            assert key not in values, f"{sample.name}{key} is told twice"
            values[key] = sample.value
        once.told = told
        return found

    once.paths = paths
    return once


def declared():
    document = yaml.safe_load((DATA / "metrics.yaml").read_text())["ts_metrics"]
    return {
        one["name"]: (kind, one["unit"], tuple(one["dimensions"]))
        for kind, many in document.items()
        for one in many
        if one["name"].startswith("ts_mps_")
    }


def test_each_series_is_declared_with_its_unit_and_its_labels_in_order(collect):
    """The frontend fills dimensions by position: one out of order would be another's value, without a word."""
    collect(living=(WORKER, ON_CPU))
    known = declared()
    for sample in collect.told:
        _, unit, dimensions = known[sample.name]
        labels = tuple(name for name, _ in sample.labels)
        assert (sample.unit, (*labels, "hostname")) == (unit, dimensions), sample.name
    assert {sample.name for sample in collect.told} == set(known)
    assert set(known) >= LOOK_NAMES | WORKER_NAMES


def test_names_follow_prometheus(collect):
    endings = {"Seconds": "_seconds", "Bytes": "_bytes", "Ratio": "_ratio"}
    for name, (kind, unit, _) in declared().items():
        assert name.endswith("_total") == (kind == "counter"), name
        assert name.endswith(endings.get(unit, "")), name


def test_a_worker_is_seen_from_client_to_model(collect):
    found = collect(living=(WORKER, LOADING, ON_CPU))
    assert found["ts_mps_worker_info"] == {
        ("bert", "0", "0", UUID, "123"): 1,
        ("bert", "1", "0", UUID, "125"): 1,
        ("tiny", "2", "cpu", "none", "126"): 1,
    }
    assert found["ts_mps_worker_ready"] == {("bert", "0", "0"): 1, ("bert", "1", "0"): 0, ("tiny", "2", "cpu"): 1}
    limited = ("bert", "0", "0")
    assert found["ts_mps_worker_sms"] == {limited: 66}
    assert found["ts_mps_worker_sm_share_ratio"] == {limited: 0.5}
    assert found["ts_mps_worker_gpu_memory_limit_bytes"] == {limited: 1536 * 2**20}
    assert found["ts_mps_worker_resident_memory_bytes"] == {limited: 2**30}
    assert found["ts_mps_worker_gpu_memory_bytes"] == {limited: 2**31}


def test_a_worker_without_limits_may_use_all_of_its_gpu(collect):
    found = collect(living=(FREE,))
    assert found["ts_mps_worker_sm_share_ratio"] == {("bert", "1", "0"): 1}
    assert "ts_mps_worker_gpu_memory_limit_bytes" not in found


def test_the_look_as_gauges(collect):
    found = collect()
    gpu = ("0", UUID)
    assert (found["ts_mps_gpu_clients"], found["ts_mps_gpu_client_cap"]) == ({gpu: 2}, {gpu: 48})
    assert {key[2] for key, value in found["ts_mps_server_state"].items() if value} == {"ACTIVE", "FAULT"}
    assert {key[2] for key, value in found["ts_mps_daemon_state"].items() if value} == {"running"}
    assert found["ts_mps_workers_planned"] == {("bert",): 2, ("tiny",): 1}
    assert found["ts_mps_workers_ready"] == {("bert",): 1, ("tiny",): 1}
    assert found["ts_mps_workers_held"] == {("bert",): 1, ("tiny",): 0}
    assert found["ts_mps_last_recovery_seconds"] == {(): 4.5}
    assert found["ts_mps_longest_recovery_seconds"] == {(): 9.0}
    assert found["ts_mps_gpu_sm_activity_ratio"] == {gpu: 0.75}


def test_without_mps_there_are_no_clients_and_no_server(collect):
    found = collect(watched(gpus=(WatchedGpu(UUID, 0, "off", "", 0, None),)))
    assert not {"ts_mps_gpu_clients", "ts_mps_gpu_client_cap", "ts_mps_server_state"} & set(found)
    assert found["ts_mps_daemon_state"][("0", UUID, "off")] == 1


def test_a_lost_gpu_is_not_usable(collect):
    found = collect(watched(gpus=(WatchedGpu(UUID, 0, "gone", "", 0, 48, lost="It fell off the bus."),)))
    assert found["ts_mps_gpu_usable"] == {("0", UUID): 0}
    assert found["ts_mps_server_state"][("0", UUID, "none")] == 1


def test_whether_the_guardian_lives_is_asked_and_not_believed(collect):
    assert collect()["ts_mps_guardian_up"] == {(): 0}
    held = try_lock(collect.paths.guardian_lock)
    assert held is not None and collect()["ts_mps_guardian_up"] == {(): 1}


@pytest.mark.parametrize("age", [11.0, -11.0], ids=["old", "of the future"])
def test_a_stale_look_is_not_told_as_if_it_were_of_now(collect, age):
    collect(living=(WORKER,))
    found = collect(replace(FULL, at=5.0, clock=time.monotonic() - age), living=(WORKER,))
    assert found["ts_mps_look_fresh"] == {(): 0}
    assert found["ts_mps_look_timestamp_seconds"] == {(): 5.0}
    assert not LOOK_NAMES & set(found) and "ts_mps_faults_total" not in found
    # The workers' own files are as true as before.
    assert found["ts_mps_worker_info"] == {("bert", "0", "0", UUID, "123"): 1}


def test_without_a_look_there_is_a_sign_of_that(collect):
    found = collect(None)
    assert (found["ts_mps_look_fresh"], found["ts_mps_look_timestamp_seconds"]) == ({(): 0}, {(): 0})


def test_a_worker_that_is_gone_becomes_zero_once(collect):
    """The frontend would show a gauge's last value for ever."""
    collect(living=(WORKER,))
    found = collect(living=(replace(WORKER, pid=200),))
    assert found["ts_mps_worker_info"] == {("bert", "0", "0", UUID, "200"): 1, ("bert", "0", "0", UUID, "123"): 0}
    assert found["ts_mps_worker_resident_memory_bytes"] == {("bert", "0", "0"): 0}  # not known of pid 200 yet
    found = collect(living=())
    assert set(found["ts_mps_worker_info"]) == {("bert", "0", "0", UUID, "200")}
    assert found["ts_mps_worker_ready"] == {("bert", "0", "0"): 0}
    assert "ts_mps_worker_info" not in collect(living=())


def test_a_model_that_left_the_plan_becomes_zero_also_after_a_stale_look(collect):
    collect()
    collect(replace(FULL, clock=time.monotonic() - 60))
    found = collect(watched(models=bert()[1:]))
    assert found["ts_mps_workers_planned"] == {("tiny",): 1, ("bert",): 0}


def total(collect, name, labels, told):
    """What the frontend's counter stands at, which adds."""
    return told + collect[name].get(labels, 0)


FAULT = ("server-fault", "0", UUID)


def test_counters_are_told_as_their_growth(collect):
    name, stands = "ts_mps_faults_total", 0.0
    stands = total(collect(), name, FAULT, stands)
    assert stands == 0, "a series begins with 0, or increase() misses what it began with"
    stands = total(collect(), name, FAULT, stands)
    assert stands == 2
    stands = total(collect(), name, FAULT, stands)
    assert stands == 2
    stands = total(collect(watched(faults={f"server-fault {UUID}": 5})), name, FAULT, stands)
    assert stands == 5
    # A new guardian counts from 0.
    stands = total(collect(watched(faults={f"server-fault {UUID}": 1})), name, FAULT, stands)
    assert stands == 6


def test_a_new_frontend_is_told_the_whole_total_so_that_the_counter_goes_on(collect):
    collect()
    assert collect()["ts_mps_java_restarts_total"] == {(): 1}
    found = collect(replace(FULL, clock=time.monotonic(), java_restarts=2), java="11:5")
    assert found["ts_mps_java_restarts_total"] == {(): 2}
    assert found["ts_mps_worker_restarts_total"] == {("bert", "cuda-error-700"): 2}
    # The gauges of the old one are not the new one's.
    assert "ts_mps_worker_info" not in found


def test_a_new_frontend_that_comes_while_the_look_is_stale_is_told_the_whole_total_after_it(collect):
    collect(), collect()
    stale = replace(FULL, clock=time.monotonic() - 60)
    assert "ts_mps_java_restarts_total" not in collect(stale, java="11:5")
    assert collect(java="11:5")["ts_mps_java_restarts_total"] == {(): 1}


def test_counters_of_a_stale_look_catch_up(collect):
    collect(), collect()
    collect(replace(FULL, clock=time.monotonic() - 60, java_restarts=9))
    assert collect(watched(java_restarts=9))["ts_mps_java_restarts_total"] == {(): 8}


def test_what_cannot_be_noted_is_not_counted_twice(collect, capsys, monkeypatch):
    collect(), collect()

    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ts_mps.guardian.metrics.write_json", full)
    found = collect(watched(java_restarts=3))
    assert "ts_mps_java_restarts_total" not in found and found["ts_mps_gpu_clients"]
    assert "No space left" in capsys.readouterr().err
    monkeypatch.undo()
    assert collect(watched(java_restarts=3))["ts_mps_java_restarts_total"] == {(): 2}

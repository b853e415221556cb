"""Changes of a running instance under load on the real TorchServe: not one of 10,000 requests is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

from sending import ECHO_IN_BATCHES, Senders
from serving import CLIENT, Serving
from support import eventually, simulated_gpu

from ts_mps.events import recorded
from ts_mps.guardian.signals import ONE_WISH
from ts_mps.guardian.watched import load_watched

#: Requests of the test as a whole.
MANY = 10_000


def begin(serving: Serving, *arguments: str, workers: int = 2, token_auth: bool = False) -> None:
    serving.environ["OMP_NUM_THREADS"] = "1"
    serving.archive("echo", ECHO_IN_BATCHES, workers=workers, batchSize=4, maxBatchDelay=20)
    keys = [] if token_auth else ["--disable-token-auth"]
    done = serving.start("--models", "echo.mar", *keys, *arguments)
    assert done.returncode == 0, done.stderr


def pids(serving: Serving) -> set[int]:
    return {worker.pid for worker in serving.workers()}


def change(serving: Serving, *words: str) -> str:
    done = serving.ts_mps(*words)
    assert done.returncode == 0, done.stderr
    assert eventually(lambda: serving.status().as_planned, 10), serving.status().problems
    assert [worker for worker in serving.workers() if not worker.planned] == []
    return done.stderr


def least_ready(serving: Serving, over: threading.Event) -> list[int]:
    """How many workers were ready at the same time, at every look, until it is over."""
    seen: list[int] = []

    def look() -> None:
        while not over.wait(0.05):
            seen.append(sum(worker.state == "ready" for worker in serving.workers()))

    threading.Thread(target=look, daemon=True).start()
    return seen


def test_ten_thousand_requests_through_every_change_and_a_stop(serving):
    settings = serving.run_folder / "ts-mps.toml"
    settings.write_text("[models.echo]\nworkers = 2\n")
    begin(serving)
    java, first = serving.state().java, pids(serving)
    with Senders(serving, "echo") as senders:
        assert senders.until(50)
        over = threading.Event()
        ready = least_ready(serving, over)
        change(serving, "restart", "--rolling")
        over.set()
        second = pids(serving)
        assert len(second) == 2 and not first & second
        assert min(ready) >= 1, "never more than one away"

        change(serving, "scale", "echo", "3")
        assert second < pids(serving) and len(pids(serving)) == 3, "those that were there stay"
        change(serving, "scale", "echo", "1")
        (alone,) = pids(serving)

        over = threading.Event()
        ready = least_ready(serving, over)
        change(serving, "restart", "--rolling", "echo")
        over.set()
        assert len(pids(serving)) == 1 and alone not in pids(serving)
        assert min(ready) >= 1, "a second one was there first"

        settings.write_text("[models.echo]\nworkers = 2\n")
        change(serving, "reload")
        assert len(pids(serving)) == 2
        assert "no worker has to change" in change(serving, "reload")
        settings.write_text("[models.echo]\nworkers = 1\n")
        serving.state().guardian.send(signal.SIGHUP)
        assert eventually(lambda: len(pids(serving)) == 1 and serving.status().as_planned, 20)

        assert senders.sent.lost == []
        assert senders.until(MANY), senders.count
        stopped = serving.ts_mps("stop", "--drain-timeout", "6")
        assert stopped.returncode == 0, stopped.stderr
        assert eventually(lambda: senders.sent.refused > 8, 5)
    assert senders.sent.lost == []
    assert senders.sent.good >= MANY
    assert serving.left() == []
    kinds = [event.kind for event in recorded(serving.paths())]
    assert "worker-gone" not in kinds and "held-back" not in kinds and "recovered" not in kinds
    assert kinds.count("change-done") == 7
    assert serving.state().java == java, "TorchServe itself was never restarted"


def test_a_stop_answers_what_was_accepted_and_a_second_signal_hurries_it(serving):
    begin(serving)
    with Senders(serving, "echo") as senders:
        assert senders.until(50)
        began = time.monotonic()
        guardian = serving.state().guardian
        guardian.send(signal.SIGTERM)  # 30 s, half of which are for a load balancer to look away
        assert eventually(lambda: serving.state().phase == "stopping", 5)
        good = senders.sent.good
        assert senders.until(senders.count + 50, 5) and senders.sent.good > good, "meanwhile all is served"
        time.sleep(max(0.0, began + 2 * ONE_WISH - time.monotonic()))
        guardian.send(signal.SIGTERM)
        assert eventually(lambda: not guardian.alive(), 15)
        assert time.monotonic() - began < 20
    assert serving.left() == []


def test_a_restart_of_the_whole_has_the_arguments_of_its_start(serving):
    begin(serving, "--workers", "1", "--drain-timeout", "5")
    guardian, java = serving.state().guardian, serving.state().java
    serving.environ["OMP_NUM_THREADS"] = "7"  # of the verb, not of the instance
    with Senders(serving, "echo", clients=2) as senders:
        assert senders.until(20)
        done = serving.call([*serving.command("restart"), "--json"])
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["as_planned"]
    assert senders.sent.lost == []
    state = serving.state()
    assert state.guardian != guardian and state.java != java and state.drain_timeout == 5.0
    (worker,) = serving.workers()
    assert b"OMP_NUM_THREADS=1" in Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
    assert serving.ts_mps("stop").returncode == 0
    assert serving.left() == []


def test_what_cannot_be_done_is_refused_and_nothing_is_touched(serving):
    begin(serving, workers=1)
    before = pids(serving)
    for words, code, sentence in (
        (["scale", "other", "2"], 2, "no workers of a model other"),
        (["scale", "echo", "0"], 2, "Give a number from 1 on"),
        (["restart", "echo"], 2, "ts-mps restart --rolling echo"),
        (["reload", "--plan", "none.json"], 2, "does not exist"),
        (["restart", "--rolling", "--name", "nobody"], 7, "is not running"),
    ):
        done = serving.ts_mps(*words)
        assert done.returncode == code and sentence in done.stderr, (words, done.stderr)
    serving.config.write_text(serving.config.read_text() + "job_queue_size=7\n")
    done = serving.ts_mps("reload")
    assert done.returncode == 2 and "(job_queue_size)" in done.stderr and "ts-mps restart" in done.stderr
    assert pids(serving) == before
    assert serving.ts_mps("stop").returncode == 0


def test_one_change_at_a_time_and_ctrl_c_ends_it_between_two_workers(serving):
    # With TorchServe's token authorisation, which holds for words as well.
    begin(serving, workers=3, token_auth=True)
    first = pids(serving)
    verb = serving.popen(serving.command("restart", "--rolling"))
    assert eventually(lambda: (seen := load_watched(serving.paths())) is not None and seen.changing != "", 10)
    assert "is being changed (rolling restart of all models)" in serving.ts_mps("status").stdout
    assert serving.ts_mps("status", "--ready").returncode == 0
    second = serving.ts_mps("scale", "echo", "4")
    assert second.returncode == 1 and "A change is under way: rolling restart of all models" in second.stderr
    os.kill(verb.pid, signal.SIGINT)
    output, _ = verb.communicate(timeout=60)
    assert verb.returncode == 130, output
    assert "ended between two workers" in output
    assert len(pids(serving)) == 3 and 0 < len(first & pids(serving)) < 3
    assert eventually(lambda: serving.status().as_planned, 10)
    assert serving.ts_mps("stop").returncode == 0
    assert serving.left() == []


ECHO_CLIENT = CLIENT.replace(
    'return [b"served"] * len(data)',
    'return [bytes(row["body"]) + b" " + str(os.getpid()).encode() for row in data]',
)


def test_under_mps_a_scale_keeps_to_the_plan_and_every_worker_is_a_client(simulated):
    simulated.environ["SIM_GPUS"] = json.dumps([simulated_gpu(0)])
    simulated.environ["OMP_NUM_THREADS"] = "1"
    simulated.archive("echo", ECHO_CLIENT, workers=1)
    done = simulated.start("--models", "echo.mar", "--disable-token-auth", "--reserve", "2")
    assert done.returncode == 0, done.stderr
    cap = simulated.status().gpus[0].cap
    refused = simulated.ts_mps("scale", "echo", str(cap + 1))
    assert refused.returncode == 4, refused.stderr
    assert f"Nearest that fits: echo {cap - 2}" in refused.stderr
    with Senders(simulated, "echo", clients=4) as senders:
        change(simulated, "scale", "echo", "2")
        assert all(worker.attached for worker in simulated.status().workers)
        change(simulated, "restart", "--rolling")
        change(simulated, "scale", "echo", "1")
        assert all(worker.attached and worker.planned for worker in simulated.status().workers)
    assert senders.sent.lost == [] and senders.sent.good > 50
    assert simulated.ts_mps("stop").returncode == 0
    assert simulated.left() == []


def test_a_reload_moves_the_only_worker_to_another_gpu_and_gives_others_another_share(simulated):
    uuids = [str(simulated_gpu(index)["uuid"]) for index in range(2)]
    simulated.environ["SIM_GPUS"] = json.dumps([simulated_gpu(0), simulated_gpu(1)])
    simulated.environ["OMP_NUM_THREADS"] = "1"
    settings = simulated.run_folder / "ts-mps.toml"
    settings.write_text("[models.echo]\ngpus = [0]\n[models.other]\ngpus = [0]\n")
    simulated.archive("echo", ECHO_CLIENT, workers=1)
    simulated.archive("other", ECHO_CLIENT, workers=2)
    done = simulated.start("--models", "echo.mar", "other.mar", "--disable-token-auth")
    assert done.returncode == 0, done.stderr
    with Senders(simulated, "echo", clients=4) as echo, Senders(simulated, "other", clients=4) as other:
        assert echo.until(20) and other.until(20)
        settings.write_text('[models.echo]\ngpus = [1]\n[models.other]\ngpus = [0]\npriority = "below-normal"\n')
        change(simulated, "reload")
        assert echo.until(echo.count + 20) and other.until(other.count + 20)
    assert echo.sent.lost == [] and other.sent.lost == []
    workers = {name: [w for w in simulated.workers() if w.slot.model == name] for name in ("echo", "other")}
    assert [worker.slot.gpu for worker in workers["echo"]] == [uuids[1]]
    assert [(w.slot.gpu, w.got.priority) for w in workers["other"]] == [(uuids[0], 1)] * 2
    assert [w for w in simulated.workers() if not (w.planned and w.proof)] == []
    assert simulated.ts_mps("stop").returncode == 0
    assert simulated.left() == []

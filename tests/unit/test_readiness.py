"""Readiness and liveness from files made by hand: in process, by ``status --ready``, and over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPConnection

import pytest
import requests
from watching import bert, instance, state, watched

from ts_mps.cli.main import main
from ts_mps.errors import PreflightError, UsageError
from ts_mps.files import try_lock
from ts_mps.guardian.health import AT_ONCE, Health, _from_here
from ts_mps.guardian.readiness import Seen, look_problem, not_live, not_ready
from ts_mps.processes import ProcessId
from ts_mps.torchserve.arguments import parse

NOW = 1_000_000.0


def seen(tmp_path, look="fresh", *, guardian=True, java=True, **changed):
    """A state of an instance that serves, with its look."""
    of = state(tmp_path, clock=NOW - 3600, **changed)
    looks = {"fresh": watched(clock=NOW - 1), "stale": watched(clock=NOW - 11), "missing": None}
    return Seen(of, looks[look] if isinstance(look, str) else look, guardian, java, NOW)


def at(**changed):
    return watched(clock=NOW - 1, **changed)


def test_ready_needs_all_of_it(tmp_path):
    assert not_ready(seen(tmp_path)) == ()
    assert not_live(seen(tmp_path)) == ()


@pytest.mark.parametrize(
    "models",
    [bert(ready=1, attached=1), bert(attached=1), bert(planned=0, ready=0, attached=0), bert(ready=3, attached=2)],
    ids=["one away", "one not attached", "none planned", "one too many"],
)
def test_a_model_that_has_a_worker_is_served(tmp_path, models):
    assert not_ready(seen(tmp_path, at(models=models))) == ()


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        (
            bert(ready=0, attached=0, held={"It crashed.": 2}),
            ("Model bert: none of 2 planned workers is ready.", "Model bert: 2 held back: It crashed."),
        ),
        (bert(attached=0), ("Model bert: none of 2 ready workers is in the client list of an MPS daemon.",)),
    ],
)
def test_a_model_without_a_worker_is_not_ready(tmp_path, model, reasons):
    assert not_ready(seen(tmp_path, at(models=model))) == reasons


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        (at(models=bert(ready=1, attached=1)), "Model bert: 1 of 2 planned workers are ready."),
        (at(models=bert(attached=1)), "Model bert: 1 of 2 ready workers are in the client list of an MPS daemon."),
        (at(java=False), "TorchServe was gone at the guardian's last look."),
        ("stale", "The guardian's last look is 11 s old, and it should look once a second."),
        ("missing", "The guardian has not looked yet: whether workers are attached is not known."),
    ],
)
def test_what_is_not_as_planned_is_not_strictly_ready(tmp_path, look, reason):
    assert not_ready(seen(tmp_path, look), strict=True) == (reason,)


def test_held_slots_say_why(tmp_path):
    look = at(models=bert(ready=1, attached=1, held={"It crashed 5 times.": 1}))
    assert not_ready(seen(tmp_path, look), strict=True)[1] == "Model bert: 1 held back: It crashed 5 times."


def test_a_worker_beyond_the_plan_does_not_stand_for_a_planned_one(tmp_path):
    assert not_ready(seen(tmp_path, at(models=bert(ready=3, attached=2))), strict=True) != ()


@pytest.mark.parametrize("phase", ["starting", "stopping", "stopped", "failed"])
def test_only_serving_is_ready(tmp_path, phase):
    assert not_ready(seen(tmp_path, phase=phase)) == (f"It is {phase}.",)
    reason = not_ready(seen(tmp_path, phase=phase, error="Java did not start."))
    assert reason == (f"It is {phase}: Java did not start.",)


def test_a_recovery_says_what_it_recovers_from(tmp_path):
    why = "TorchServe ended by itself by signal 9."
    gone = not_ready(seen(tmp_path, java=False, phase="recovering", why=why))
    assert gone == ("It is recovering: TorchServe ended by itself by signal 9.", "TorchServe is gone.")
    back = seen(tmp_path, at(models=bert(ready=1, attached=1)), phase="recovering", why=why)
    assert not_ready(back) == (), "each model is served again"
    assert not_ready(back, strict=True)[0].startswith("It is recovering")


def test_a_dead_java_is_met_before_the_next_look(tmp_path):
    assert not_ready(seen(tmp_path, java=False)) == ("TorchServe is gone.",)


def test_a_look_from_the_future_is_of_an_earlier_boot(tmp_path):
    earlier = seen(tmp_path, watched(clock=NOW + 60))
    assert (earlier.look, earlier.age) == ("missing", None)


def test_a_stale_look_names_the_dead_guardian(tmp_path):
    assert look_problem(seen(tmp_path, "stale", guardian=False)).endswith("for the guardian is gone.")


def test_liveness_is_patient(tmp_path):
    """Who asks kills for it, and healthy workers with it."""
    assert not_live(seen(tmp_path, watched(clock=NOW - 59))) == ()
    assert not_live(seen(tmp_path, watched(clock=NOW - 61))) != ()
    # Just serving: there may be no look yet.
    fresh = replace(seen(tmp_path, "missing"), state=state(tmp_path, clock=NOW - 5))
    assert not_live(fresh) == ()
    for phase in ("starting", "stopping"):
        assert not_live(seen(tmp_path, "missing", phase=phase)) == ()
    assert not_live(seen(tmp_path, watched(clock=NOW - 61), phase="recovering")) != ()
    assert not_live(seen(tmp_path, guardian=False)) == ("The guardian is gone.",)


@pytest.fixture
def served(short_dir):
    """An instance that serves, as far as its files say; this process is guardian and java."""
    paths = instance(short_dir)
    state(short_dir).save(paths)
    held = try_lock(paths.guardian_lock)
    watched().save(paths)
    yield paths
    os.close(held)


def status(paths, *words):
    return main(["status", "--runtime-dir", str(paths.root.parents[1]), *words])


def test_status_ready_as_a_probe(served, capsys):
    assert status(served, "--ready") == 0
    assert capsys.readouterr().out == "ready\n"
    watched(models=bert(ready=1, attached=1)).save(served)
    assert status(served, "--ready") == 0
    assert capsys.readouterr().out == "ready\n"
    assert status(served, "--ready", "--strict") == 7
    assert capsys.readouterr().out == "Model bert: 1 of 2 planned workers are ready.\n"


def test_status_ready_as_json_says_how_old_the_look_is(served, capsys):
    watched(clock=time.monotonic() - 30).save(served)
    assert status(served, "--ready", "--json") == 7
    value = json.loads(capsys.readouterr().out)
    assert (value["ready"], value["live"], value["look"]["state"]) == (False, True, "stale")
    assert value["look"]["age_seconds"] == pytest.approx(30, abs=5)
    assert value["guardian"] == value["java"] == os.getpid()
    assert value["watched"]["models"][0]["planned"] == 2


def test_status_ready_before_any_start(short_dir, capsys):
    assert main(["status", "--ready", "--runtime-dir", str(short_dir)]) == 7
    assert "never been started" in capsys.readouterr().out


def test_ready_and_watch_exclude_each_other(short_dir, capsys):
    assert main(["status", "--ready", "--watch", "--runtime-dir", str(short_dir)]) == UsageError.exit_code


def test_a_probe_imports_no_torch_and_no_server(served):
    """It is paid every few seconds."""
    code = (
        "import sys; from ts_mps.cli.main import main; code = main(sys.argv[1:]);"
        "print([name for name in ('torch', 'ts', 'pynvml') if name in sys.modules]); sys.exit(code)"
    )
    words = ["status", "--ready", "--runtime-dir", str(served.root.parents[1])]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("ready\n[]\n", 0), done.stderr


@pytest.fixture
def health(served):
    with Health(served, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.port}"


def get(url, **more):
    return requests.get(url, timeout=5, **more)


def test_http_follows_the_files(health, served):
    assert (get(f"{health}/live").status_code, get(f"{health}/ready").status_code) == (200, 200)
    assert get(f"{health}/ready").json() == {"version": 1, "ready": True, "look": "fresh", "reasons": []}
    watched(clock=time.monotonic() - 30).save(served)
    answer = get(f"{health}/ready")
    assert (answer.status_code, answer.json()["ready"], answer.json()["look"]) == (503, False, "stale")
    assert "30 s old" in answer.json()["reasons"][0]
    assert get(f"{health}/live").status_code == 200
    watched(clock=time.monotonic() - 90).save(served)
    assert get(f"{health}/live").status_code == 503
    assert get(f"{health}/status").json()["not_live"]


def test_http_strictly(health, served):
    watched(models=bert(ready=1, attached=1)).save(served)
    assert get(f"{health}/ready").status_code == 200
    answer = get(f"{health}/ready?strict")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["Model bert: 1 of 2 planned workers are ready."])
    assert (get(f"{health}/status").json()["ready"], get(f"{health}/status").json()["as_planned"]) == (True, False)


def test_strict_goes_with_ready(served, capsys):
    assert status(served, "--strict") == UsageError.exit_code


@pytest.mark.parametrize(
    ("client", "here"), [("127.0.0.9", True), ("::ffff:127.0.0.1", True), ("::1", True), ("10.0.0.1", False)]
)
def test_status_is_for_its_own_machine(client, here):
    assert _from_here(client) == here


def test_the_oldest_of_too_many_connections_goes(health):
    address = ("127.0.0.1", int(health.rpartition(":")[2]))
    opened = [socket.create_connection(address, timeout=3) for _ in range(AT_ONCE + 3)]
    assert [one.recv(1) for one in opened[:3]] == [b""] * 3, "long before their time is up"
    opened[-1].sendall(b"GET /live HTTP/1.0\r\n\r\n")
    assert opened[-1].recv(12) == b"HTTP/1.0 200"
    for one in opened:
        one.close()


def test_a_connection_has_its_time_however_slowly_it_speaks(health, monkeypatch):
    monkeypatch.setattr("ts_mps.guardian.health.SECONDS", 1.0)
    with socket.create_connection(("127.0.0.1", int(health.rpartition(":")[2])), timeout=0.2) as slow:
        began, said = time.monotonic(), None
        while said != b"" and time.monotonic() < began + 10:
            with suppress(TimeoutError, ConnectionError):
                slow.sendall(b"G")
                said = slow.recv(1)
        assert said == b"" and 1 <= time.monotonic() - began < 4


def test_http_status_without_a_look(health, served):
    served.watched.unlink()
    value = get(f"{health}/status").json()
    assert (value["look"], value["watched"]) == ({"state": "missing", "age_seconds": None}, None)


def test_other_pages_and_methods(health):
    assert get(f"{health}/").status_code == 404
    assert requests.post(f"{health}/live", timeout=5).status_code == 501
    head = requests.head(f"{health}/ready?probe=1", timeout=5)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Server"].strip() == "ts-mps", "no version of Python for whoever scans ports"


def test_silent_clients_hold_nobody_up(health):
    port = int(health.rpartition(":")[2])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    half = socket.create_connection(("127.0.0.1", port))
    half.sendall(b"GET /live HT")
    began = time.monotonic()
    assert get(f"{health}/live").status_code == 200
    assert time.monotonic() - began < 2
    for one in (*silent, half):
        one.close()


def test_the_end_does_not_wait_for_clients(served):
    before = threading.active_count()
    with Health(served, "127.0.0.1", 0) as server:
        open_one = HTTPConnection("127.0.0.1", server.port, timeout=5)
        open_one.connect()
        began = time.monotonic()
    assert time.monotonic() - began < 2
    open_one.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_port_that_is_taken_is_a_sentence(served):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(PreflightError, match=f"127.0.0.1:{port}: Address already in use"),
            Health(served, "127.0.0.1", port),
        ):
            pass


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:8083", ("127.0.0.1", 8083)), ("localhost:1", ("localhost", 1)), ("[::1]:8083", ("::1", 8083))],
)
def test_health_address(text, address):
    assert parse(["--health-address", text], {}).health_address == address
    assert parse([], {"TS_MPS_HEALTH_ADDRESS": text}).health_address == address
    assert parse([], {}).health_address is None


@pytest.mark.parametrize("text", ["8083", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1:8083", "a b:1", ":8083"])
def test_what_is_no_health_address(text):
    with pytest.raises(UsageError, match="--health-address"):
        parse(["--health-address", text], {})


def test_a_pid_used_again_is_not_java(served):
    state(served.root, java=ProcessId(os.getpid(), 1)).save(served)
    assert status(served, "--ready") == 7

"""Live throughput: counters read from a metrics page, and what is shown of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console, Group
from support import hear_signals
from watching import instance, state, watched

from ts_mps.cli.watch import Reader, Reading, lines, rendered
from ts_mps.errors import TsMpsError
from ts_mps.files import try_lock
from ts_mps.guardian.throughput import Throughput, throughput
from ts_mps.torchserve.addresses import Address
from ts_mps.torchserve.counters import CounterReader, Counters, parse
from ts_mps.torchserve.endpoints import Endpoints

#: As TorchServe 0.12.0 writes it.
PAGE = """# HELP ts_inference_requests_total Torchserve prometheus counter metric with unit: Count
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{{model_name="bert",model_version="1.0",hostname="h",}} {0}.0
ts_inference_requests_total{{model_name="bert",model_version="2.0",hostname="h",}} 10.0
# TYPE ts_inference_latency_microseconds counter
ts_inference_latency_microseconds{{model_name="bert",model_version="1.0",hostname="h",}} {1}
ts_queue_latency_microseconds{{model_name="bert",model_version="1.0",hostname="h",}} 1.0E6
Requests2XX{{Level="Host",Hostname="h",}} 3.0
"""


def test_counters_of_all_versions_of_a_model_are_one():
    found = parse(PAGE.format(90, "2.5E6"), 7.0)
    assert found == Counters(7.0, {"bert": 100.0}, {"bert": 2.5e6}, {"bert": 1e6})


def test_throughput_is_what_came_between():
    before = Counters(10.0, {"bert": 100.0}, {"bert": 2e6}, {"bert": 1e6})
    after = Counters(12.0, {"bert": 300.0, "new": 4.0}, {"bert": 4e6, "new": 8e3}, {"bert": 1.5e6})
    assert throughput(before, after, ["idle"]) == (
        Throughput("bert", 100.0, 10.0, 2.5, 300),
        Throughput("idle", 0.0, None, None, 0),
        Throughput("new", 2.0, 2.0, 0.0, 4),
    )


def test_a_torchserve_that_was_started_anew_counts_from_zero():
    before = Counters(10.0, {"bert": 100.0}, {"bert": 2e6}, {"bert": 1e6})
    after = Counters(12.0, {"bert": 40.0}, {"bert": 4e5}, {"bert": 4e4})
    assert throughput(before, after, ()) == (Throughput("bert", 20.0, 10.0, 1.0, 40),)


class Page(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        assert self.path.startswith("/metrics?name%5B%5D=ts_inference_requests_total&")
        type(self).asked += 1
        body = PAGE.format(100 * self.asked, f"{self.asked}.0E6").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def page():
    """A metrics address where a hundred requests come between any two readings."""

    class Mine(Page):
        """Counts anew."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield Address("metrics_address", "127.0.0.1", server.server_address[1])
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def served(short_dir, page):
    paths = instance(short_dir)
    local = Address("inference_address", "127.0.0.1", 1)
    state(short_dir, endpoints=Endpoints(local, local, page, None, None)).save(paths)
    watched().save(paths)
    held = try_lock(paths.guardian_lock)
    yield paths
    os.close(held)


def test_readings_of_an_instance(served):
    reader = Reader(served)
    first = reader.read()
    assert (first.phase, first.not_ready, first.trouble) == ("serving", (), "")
    assert [(model.model, model.per_second) for model in first.models] == [("bert", 0.0), ("tiny", 0.0)]
    second = reader.read()
    assert second.models[0].per_second > 100 and second.models[0].mean_ms == pytest.approx(10.0)
    reader.close()


def test_only_what_is_needed_is_asked_for(page):
    reader = CounterReader(page, None)
    assert reader.read().requests == {"bert": 110.0}
    reader.close()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"java": None}, "TorchServe is not running"),
        ({"endpoints": Endpoints(*[Address("x", "127.0.0.1", 1)] * 2, None, None, None)}, "enable_metrics_api=false"),
        ({"endpoints": Endpoints(*[Address("x", "127.0.0.1", 1)] * 3, None, None)}, "does not answer"),
    ],
)
def test_without_counters_the_reason_is_told(served, change, sentence):
    state(served.root, **change).save(served)
    reading = Reader(served).read()
    assert sentence in reading.trouble and reading.models == ()
    assert any(sentence in line for line in lines(reading))


def test_a_torchserve_that_moved_is_found_again(served, page):
    reader = Reader(served)
    reader.read()
    now = state(served.root)
    nowhere = replace(now.endpoints, metrics=Address("metrics_address", "127.0.0.1", 1))
    replace(now, endpoints=nowhere).save(served)
    assert "does not answer" in reader.read().trouble
    replace(now, endpoints=replace(now.endpoints, metrics=page)).save(served)
    assert reader.read().models[0].per_second == 0.0, "the first reading of a connection is compared with none"
    assert reader.read().models[0].per_second > 0


def test_an_address_that_answers_otherwise(short_dir):
    reader = CounterReader(Address("metrics_address", "", 0, path=str(short_dir / "no-socket")), None)
    with pytest.raises(TsMpsError, match="does not answer"):
        reader.read()


def test_what_is_shown():
    models = (Throughput("bert", 123.44, 10.0, 2.5, 3000), Throughput("idle", 0.0, None, None, 0))
    reading = Reading(0.0, "serving", ("The guardian's last look is 30 s old.",), models)
    first, second, third = lines(reading)
    assert first.endswith("serving, not ready: The guardian's last look is 30 s old.")
    assert second.endswith("bert  123.4 requests/s  mean 10.0 ms  queue 2.5 ms  3000 in all")
    assert third.endswith("idle  0.0 requests/s  mean - ms  queue - ms  0 in all")
    console = Console(width=100)
    with console.capture() as caught:
        console.print(Group(*rendered(reading)))
    shown = caught.get()
    assert "not ready The guardian's last look is 30 s old." in shown
    assert [row.split() for row in shown.splitlines()][-2:] == [
        ["bert", "123.4", "10.0", "2.5", "3,000"],
        ["idle", "0.0", "-", "-", "0"],
    ]


@pytest.mark.parametrize("as_json", [False, True])
def test_without_a_terminal_lines_come_until_ctrl_c(served, as_json):
    command = [sys.executable, "-m", "ts_mps", "status", "--watch", "--runtime-dir", str(served.root.parents[1])]
    command += ["--json"] if as_json else []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_signals
    )
    try:
        first = process.stdout.readline()
        if as_json:
            value = json.loads(first)
            assert (value["ready"], value["models"][0]["model"]) == (True, "bert")
            assert value["models"][0]["per_second"] > 0
        else:
            assert first.endswith("serving, ready\n") and "requests/s" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=20)
        assert (complaints, process.returncode) == ("", 0)
    finally:
        process.kill()
        process.wait()

"""The handlers of handlers/ behind the real TorchServe, on the CPU: all four in one `ts-mps start`."""

from __future__ import annotations

import base64
import collections
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mixed
import numpy as np
import psutil
import pytest
import requests
import safetensors.numpy
import torch
from handling import Served, npy
from mixed import (
    BYTES,
    JSON,
    MODELS,
    NPY,
    PNG,
    SAFETENSORS,
    TEXT,
    Ask,
    Case,
    Client,
    Traffic,
    comparable,
    differ,
    twins,
)
from serving import Serving
from support import eventually

from ts_mps.torchserve.java import find_java

#: Seconds in which any request is answered, whatever it is; a kilobyte of nonsense must not keep a worker busy.
LIMIT_S = 20.0
FUZZED = 400
#: What a fuzzed worker may grow by at its peak: some requests carry megabytes, and allocators keep what they have had.
GROWTH = 200 * 2**20
SAME = 1e-4


class Server:
    """The running server, and the same handlers in this process."""

    def __init__(self, serving: Serving, served: dict[str, Served], folders: dict[str, Path]) -> None:
        self.serving, self.served, self.folders = serving, served, folders
        values = dict(line.split("=", 1) for line in serving.config.read_text().splitlines())
        self.url, self.metrics = values["inference_address"], values["metrics_address"]
        parts = urlsplit(self.url)
        self.host, self.address = parts.netloc, (str(parts.hostname), int(parts.port or 0))

    def post(self, path: str, body: Any = None, kind: str = JSON, **more: Any) -> requests.Response:
        """A request as a client's library makes it."""
        headers = {**({"Content-Type": kind} if kind else {}), **more.pop("headers", {})}
        given = {"json": body} if isinstance(body, (dict, list)) else {"data": body}
        return requests.post(f"{self.url}{path}", **given, headers=headers, timeout=LIMIT_S, **more)

    def good(self, path: str, body: Any, kind: str = JSON, **more: Any) -> Any:
        answer = self.post(path, body, kind, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def inside(self, model: str, body: Any, kind: str = JSON) -> Any:
        answer = self.served[model].ask((body, kind))[0]
        assert answer.status == 200, answer.body
        return answer.json

    def pids(self) -> dict[str, int]:
        return {worker.slot.model: worker.pid for worker in self.serving.workers()}

    def ask_all(self, asks: Sequence[Ask], threads: int) -> list[tuple[int, bytes, float] | Exception]:
        """Ask everything over as many keep-alive connections; the answers in the order of the requests."""
        clients = [Client(self.address, LIMIT_S) for _ in range(threads)]

        def some(number: int) -> list[tuple[int, bytes, float] | Exception]:
            return [timed(clients[number], one.raw(self.host)) for one in asks[number::threads]]

        with ThreadPoolExecutor(threads) as pool:
            shares = list(pool.map(some, range(threads)))
        for client in clients:
            client.close()
        return [shares[index % threads][index // threads] for index in range(len(asks))]


def timed(client: Client, request: bytes) -> tuple[int, bytes, float] | Exception:
    began = time.monotonic()
    try:
        return (*client.ask(request), time.monotonic() - began)
    except (OSError, ValueError) as error:
        return error


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="tsm", dir="/tmp"))
    serving = Serving(folder, dict(os.environ))
    try:
        folders = {model: folder / "models" / model for model in MODELS}
        for model in MODELS:
            mixed.build(model, serving.store, folders[model])
        started = serving.start("--disable-token-auth", "--models", *(f"{model}.mar" for model in MODELS))
        assert started.returncode == 0, started.stdout + started.stderr
        yield Server(serving, {model: mixed.serve(model, folders[model]) for model in MODELS}, folders)
        stopped = serving.ts_mps("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert serving.left() == []
    finally:
        serving.kill_everything()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def traffic(server: Server) -> Traffic:
    return Traffic(server.served, seed=20)


def close(found: Any, expected: Any) -> bool:
    return not differ(comparable(found), comparable(expected), SAME)


def v2_outputs(answer: dict[str, Any], model: str) -> dict[str, Any]:
    """A KServe v2 answer's tensors by name: arrays in their shape, texts as they are."""
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (model, "1.0", "my id")
    found = {}
    for one in answer["outputs"]:
        data = one["data"] if one["datatype"] == "BYTES" else np.array(one["data"]).reshape(one["shape"])
        assert len(data) == one["shape"][0]
        found[one["name"]] = data
    return found


def v2_body(name: str, datatype: str, shape: list[int], data: list[Any], **more: Any) -> dict[str, Any]:
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    return {"id": "my id", "inputs": [tensor], **more}


# -- every way to ask ----------------------------------------------------------------------------------------------


def test_texts(server: Server) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, path = server.folders["text_classifier"], "/predictions/text_classifier"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def wanted(text: str) -> list[float]:
        with torch.inference_mode():
            return model.eval()(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()

    def labels(text: str) -> dict[str, float]:
        return dict(zip(("NEGATIVE", "POSITIVE"), wanted(text), strict=True))

    text, other = "the film was very good, i enjoyed it", "slow & dear"
    ids = tokenizer(text)["input_ids"]
    assert abs(wanted(text)[0] - wanted(other)[0]) > 5 * SAME, "the two could be swapped unnoticed"
    assert close(server.good(path, text.encode(), TEXT), labels(text))
    assert close(server.good(path, {"text": text}), labels(text))
    assert close(server.good(path, [text, other]), [labels(text), labels(other)])
    two = server.good(path, {"instances": [{"text": other}, {"input_ids": ids}]})
    assert close(two, {"predictions": [labels(other), labels(text)]})
    assert close(
        server.good("/v1/models/text_classifier:predict", {"instances": [text]}), {"predictions": [labels(text)]}
    )
    array, kind = npy([ids])
    assert close(server.good(path, array, kind), [labels(text)])
    tensors = safetensors.numpy.save({"input_ids": np.array([ids])})
    assert close(server.good(path, tensors, SAFETENSORS), [labels(text)])
    form = {"data": ("review.txt", text.encode(), TEXT)}
    assert close(server.good(path, None, "", files=form), labels(text))

    v2_path = "/v2/models/text_classifier/infer"
    scores = v2_outputs(server.good(v2_path, v2_body("text", "BYTES", [2], [text, other])), "text_classifier")["scores"]
    assert np.abs(scores - [wanted(text), wanted(other)]).max() < SAME
    both = v2_body("input_ids", "INT64", [2, len(ids)], ids + ids)
    scores = v2_outputs(server.good(v2_path, both), "text_classifier")["scores"]
    assert np.abs(scores - [wanted(text)] * 2).max() < SAME
    answer = server.post(path, [text, other], headers={"Accept": NPY})
    assert answer.headers["Content-Type"] == NPY
    assert np.abs(np.load(io.BytesIO(answer.content)) - [wanted(text), wanted(other)]).max() < SAME


def test_candidates(server: Server, traffic: Traffic) -> None:
    path, rows = "/predictions/ranker", traffic.candidates(5)
    dense, sparse = np.ascontiguousarray(rows[:, :13]), rows[:, 13:].astype("int64")
    wanted = server.inside("ranker", rows.tolist())
    apart = np.diff(np.sort(wanted["scores"]))
    assert apart.min() > 2 * SAME, "candidates could be swapped unnoticed"
    assert close(server.good(path, rows.tolist()), wanted)
    assert close(server.good(path, {"instances": rows.tolist()}), {"predictions": wanted["scores"]})
    assert close(server.good(path, {"dense": dense.tolist(), "sparse": sparse.tolist()}), wanted)
    assert close(server.good(path, *npy(rows)), wanted)
    both = safetensors.numpy.save({"dense": dense, "sparse": sparse})
    assert close(server.good(path, both, SAFETENSORS), wanted)
    form = {"data": ("rows.npy", npy(rows)[0], NPY), "top_k": (None, "2")}
    best = np.argsort(wanted["scores"])[::-1][:2].tolist()
    top = server.good(path, None, "", files=form)["top"]
    assert [one["index"] for one in top] == best
    assert [one["score"] for one in top] == pytest.approx([wanted["scores"][index] for index in best], abs=SAME)

    body = v2_body("candidates", "FP32", [2, 39], rows[:2].ravel().tolist())
    scores = v2_outputs(server.good("/v2/models/ranker/infer", body), "ranker")["scores"]
    assert scores == pytest.approx(wanted["scores"][:2], abs=SAME)
    answer = server.post(path, *npy(rows), headers={"Accept": NPY})
    assert np.load(io.BytesIO(answer.content)) == pytest.approx(wanted["scores"], abs=SAME)


def test_images(server: Server, traffic: Traffic) -> None:
    path, one, two = "/predictions/image_classifier", traffic.image(), traffic.image("JPEG")
    wanted = [server.inside("image_classifier", one, PNG), server.inside("image_classifier", two, "image/jpeg")]
    assert differ(*map(comparable, wanted), 5 * SAME), "the two could be swapped unnoticed"
    assert close(server.good(path, one, PNG), wanted[0])
    assert close(server.good(path, two, "image/jpeg"), wanted[1])
    assert close(server.good(path, two, BYTES), wanted[1])
    texts = [base64.b64encode(file).decode() for file in (one, two)]
    assert close(server.good(path, {"b64": texts[1]}), wanted[1])
    assert close(server.good(path, [texts[1], {"b64": texts[0]}]), wanted[::-1])
    assert close(server.good(path, {"instances": texts}), {"predictions": wanted})
    form = {"first": ("a.png", one, PNG), "second": ("b.jpg", two, "image/jpeg")}
    # TorchServe's frontend does not keep the order of a form's parts.
    found = server.good(path, None, "", files=form)
    assert close(found, wanted) or close(found, wanted[::-1])
    assert close(server.good(path, None, "", files={"data": ("a.png", one, PNG)}), wanted[0])

    names = server.served["image_classifier"].handler._labels
    matrix = [[comparable(row)[names[index]] for index in range(len(names))] for row in wanted]
    answer = server.post(path, texts, headers={"Accept": NPY})
    assert np.abs(np.load(io.BytesIO(answer.content)) - matrix).max() < SAME


def test_prompts(server: Server) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, path = server.folders["text_generator"], "/predictions/text_generator"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def wanted(text: str, tokens: int) -> list[int]:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            found = model.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :].tolist()
        return [token for token in found if token != model.config.eos_token_id]

    text, other = "Once upon a time", "2 + 2 ="
    assert wanted(text, 6) != wanted(other, 6), "the two could be swapped unnoticed"
    found = server.good(path, {"prompt": text, "max_tokens": 6})
    assert (found["token_ids"], found["text"]) == (wanted(text, 6), tokenizer.decode(wanted(text, 6)))
    assert server.good(path, text.encode(), TEXT)["token_ids"] == wanted(text, 8)
    both = [{"prompt": other, "max_tokens": 3}, text]
    found = server.good(path, {"instances": both, "max_tokens": 6})["predictions"]
    assert [one["token_ids"] for one in found] == [wanted(other, 3), wanted(text, 6)]
    ids = tokenizer(text)["input_ids"]
    assert server.good(path, *npy([ids]))[0]["token_ids"] == wanted(text, 8)
    tensors = safetensors.numpy.save({"input_ids": np.array([ids])})
    assert server.good(path, tensors, SAFETENSORS)[0]["token_ids"] == wanted(text, 8)
    form = {"data": ("prompt.txt", other.encode(), TEXT)}
    assert server.good(path, None, "", files=form)["token_ids"] == wanted(other, 8)

    body = v2_body("text", "BYTES", [2], [text, other], parameters={"max_tokens": 6})
    outputs = v2_outputs(server.good("/v2/models/text_generator/infer", body), "text_generator")
    assert [[token for token in row if token >= 0] for row in outputs["token_ids"].tolist()] == [
        wanted(text, 6),
        wanted(other, 6),
    ]
    assert outputs["text"] == [tokenizer.decode(wanted(text, 6)), tokenizer.decode(wanted(other, 6))]
    answer = server.post(path, {"prompt": text, "max_tokens": 6}, headers={"Accept": SAFETENSORS})
    assert safetensors.numpy.load(answer.content)["token_ids"].tolist() == [wanted(text, 6)]
    # An answer of several tensors is more than one .npy file holds.
    assert server.post(path, {"prompt": text}, headers={"Accept": NPY}).status_code == 406


# -- bad requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_fuzzed_bodies_get_4xx_and_leave_the_worker_as_it_was(server: Server, model: str) -> None:
    traffic = Traffic(server.served, seed=MODELS.index(model))
    kinds = [*mixed._BAD, mixed.for_the_frontend]
    asks = [kinds[number % len(kinds)](traffic, model) for number in range(FUZZED)]
    pids = server.pids()
    peak = peak_memory(pids[model])
    wrong = []
    for one, answer in zip(asks, server.ask_all(asks, threads=6), strict=True):
        if isinstance(answer, Exception) or not 400 <= answer[0] < 500 or answer[2] > LIMIT_S:
            wrong.append(f"{one.path} {one.kind} {one.headers} {one.body[:150]!r}: {answer!r:.300}")
    assert not wrong, f"{len(wrong)} of {len(asks)}:\n" + "\n".join(wrong[:20])
    case = traffic.good(model)
    status, body = Client(server.address).ask(case.ask.raw(server.host))
    assert status == 200 and not differ(comparable(loaded(body)), case.answer, SAME)
    assert server.pids() == pids
    assert peak_memory(pids[model]) - peak < GROWTH


def loaded(body: bytes) -> Any:
    import orjson

    return orjson.loads(body)


def peak_memory(pid: int) -> int:
    """The most memory that a process has ever had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


# -- many at once --------------------------------------------------------------------------------------------------


def test_a_thousand_mixed_requests_get_their_own_answers(server: Server, traffic: Traffic) -> None:
    cases = [traffic.good(MODELS[number % 4]) for number in range(950)]
    cases += [traffic.bad(MODELS[number % 4]) for number in range(50)]
    traffic.dice.shuffle(cases)
    for model in MODELS:
        assert not twins([case for case in cases if case.model == model], 2 * SAME), "they could be swapped unnoticed"
    pids = server.pids()
    wrong: collections.Counter[str] = collections.Counter()
    first = ""
    for case, answer in zip(cases, server.ask_all([case.ask for case in cases], threads=32), strict=True):
        what = verdict(case, answer)
        wrong[what] += 1
        first = first or (
            f"{case.model} {case.ask.body[:200]!r}: {answer!r:.500}" if what not in ("good", "bad") else ""
        )
    assert wrong == {"good": 950, "bad": 50}, f"{wrong}; {first}"
    assert server.pids() == pids


def verdict(case: Case, answer: tuple[int, bytes, float] | Exception) -> str:
    if isinstance(answer, Exception):
        return f"{case.model}: lost"
    if answer[0] != case.status:
        return f"{case.model}: {answer[0]} in place of {case.status}"
    if case.answer is None:
        return "bad"
    return "good" if not differ(comparable(loaded(answer[1])), case.answer, SAME) else f"{case.model}: another answer"


# -- around them ---------------------------------------------------------------------------------------------------


def test_metrics_count_what_was_asked(server: Server) -> None:
    def counters() -> dict[str, float]:
        text = requests.get(f"{server.metrics}/metrics", timeout=LIMIT_S).text
        found = re.findall(r'^(Batch\w+?)(?:_total)?\{ModelName="text_classifier",[^}]*\} (\S+)$', text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def ask_all() -> None:
        for _ in range(7):
            server.good("/predictions/text_classifier", {"instances": [{"input_ids": [5, 6, 7, 8, 9]}] * 3})
        for _ in range(2):
            assert server.post("/predictions/text_classifier", {"input_ids": [-1]}).status_code == 422

    ask_all()  # a counter appears when it is first counted
    # What was asked before may still be on its way through the worker's output.
    before = settled(counters)
    ask_all()
    wanted = {
        "BatchRequests": 9, "BatchInstances": 21, "BatchRuns": 7, "BatchTokens": 105, "BatchPaddedTokens": 7 * 3 * 16,
        "BatchGraphHits": 0, "BatchIsolatedErrors": 2,
    }  # fmt: skip

    def difference() -> dict[str, float]:
        now = counters()
        return {name: now.get(name, -1) - before.get(name, 0) for name in wanted}

    assert eventually(lambda: difference() == wanted, 10), difference()
    now = counters()
    for name in ("BatchIdleTime", "BatchDecodeTime", "BatchRunTime", "BatchEncodeTime"):
        assert now[name] > before[name], name
    assert (now["BatchSize"], now["BatchPadding"]) == (1, 0)


def settled(counters: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What the counters are once they have stood still for a second."""
    seen = [counters()]

    def still() -> bool:
        time.sleep(1.0)
        seen.append(counters())
        return "BatchRequests" in seen[-1] and seen[-1] == seen[-2]

    assert eventually(still, 20), seen[-2:]
    return seen[-1]


def test_a_wrong_key_stops_the_load_with_its_name(serving: Serving) -> None:
    mixed.build("ranker", serving.store, serving.folder / "model", batching__dtyp="fp16")
    began = time.monotonic()
    failed = serving.start("--models", "ranker.mar")
    assert failed.returncode == 6
    assert "batching.dtyp: no such key, did you mean dtype?" in failed.stderr
    assert time.monotonic() - began < 60
    assert serving.left() == []


def test_the_same_archive_under_plain_torchserve(serving: Serving, server: Server, traffic: Traffic) -> None:
    shutil.copy(server.serving.store / "ranker.mar", serving.store)
    values = dict(line.split("=", 1) for line in serving.config.read_text().splitlines())
    # TorchServe itself finds java by JAVA_HOME or PATH only.
    serving.environ["JAVA_HOME"] = str(Path(find_java(os.environ).path).resolve().parents[1])
    launcher = [sys.executable, "-m", "ts.model_server"]
    what = ["--model-store", str(serving.store), "--ts-config", str(serving.config), "--models", "ranker.mar"]
    # Java keeps the output that it inherits, so nobody could wait for the end of a pipe.
    subprocess.run(
        [*launcher, "--start", "--ncs", "--disable-token-auth", *what],
        cwd=serving.run_folder, env=serving.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
    )  # fmt: skip

    def ready() -> bool:
        try:
            answer = requests.get(f"{values['management_address']}/models/ranker", timeout=5).json()
        except (requests.RequestException, ValueError):
            return False
        return isinstance(answer, list) and [one["status"] for one in answer[0]["workers"]] == ["READY"]

    assert eventually(ready, 100)
    rows, kind = npy(traffic.candidates(4))
    url = f"{values['inference_address']}/predictions/ranker"
    good = requests.post(url, rows, headers={"Content-Type": kind}, timeout=LIMIT_S)
    assert good.status_code == 200 and close(good.json(), server.inside("ranker", rows, kind))
    bad = requests.post(url, json=[[1, 2]], timeout=LIMIT_S)
    assert bad.status_code == 422 and "39" in bad.json()["message"]
    java = [process for process in serving.processes() if process.name() == "java"]
    stopped = serving.call([*launcher, "--stop"])
    assert "TorchServe has stopped." in stopped.stdout, stopped.stdout + stopped.stderr
    psutil.wait_procs(java, 30)
    assert eventually(lambda: serving.processes() == [], 20), serving.left()

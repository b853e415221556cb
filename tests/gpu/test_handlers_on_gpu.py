"""Handlers on a real GPU: results against the eager float32 model for every bucket, memory, faults."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import requests
import safetensors.torch
import torch
from handling import Served, build_module, npy
from serving import Serving
from support import eventually

from ts_mps.batching.grid import Shape
from ts_mps.guardian.state import load_state

pytestmark = pytest.mark.gpu

JSON = "application/json"

#: Largest difference of a probability from the eager float32 model's: a few units in the last place of the dtype, and
#: for tf32 of its 10-bit mantissa, after the layers of the small models here.
TOLERANCE = {"fp32": 2e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 2e-2}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its classifier's random weights are enlarged: the scores differ from text to text by far more than TOLERANCE."""
    folder = tmp_path_factory.mktemp("bert")
    build_module("text_classifier").tiny(folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= 30
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet")
    build_module("image_classifier").tiny(folder)
    return folder


@pytest.fixture(scope="module")
def dlrm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dlrm")
    build_module("ranker").tiny(folder)
    return folder


def eager_bert(folder: Path, rows: list[list[int]]) -> np.ndarray:
    """Each row alone, unpadded, in float32 on the CPU by transformers itself."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return np.stack([model(input_ids=torch.tensor([row])).logits.softmax(-1)[0].numpy() for row in rows])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_text_equals_eager_for_every_bucket(bert: Path, dtype: str) -> None:
    lengths = [8, 24, 64]
    served = Served(
        "text_classifier", bert, gpu=0, batching__dtype=dtype, batching__lengths=lengths, batching__max_instances=4,
        batching__launch_cost=0, handler__top_k=0,
    )  # fmt: skip
    random = np.random.default_rng(0)
    seen, scores = set(), []
    for length in lengths:
        shorter = max([0, *(one for one in lengths if one < length)])
        for count in (1, 2, 3, 4):
            for padded in (False, True):
                sizes = random.integers(shorter + 1, length, count) if padded else [length] * count
                rows = [random.integers(5, 100, size).tolist() for size in sizes]
                answers = served.ask(*[({"input_ids": row}, "application/json") for row in rows])
                wanted = eager_bert(bert, rows)
                for answer, expected in zip(answers, wanted, strict=True):
                    assert answer.status == 200, answer.body
                    given = {one["label"]: one["score"] for one in answer.json}
                    found = [given["NEGATIVE"], given["POSITIVE"]]
                    assert np.abs(np.array(found) - expected).max() < TOLERANCE[dtype]
                    scores.append(found)
                seen.add(Shape(served.handler.grid.rows(count, length), length, not padded))
    assert seen == set(served.handler.grid.shapes()), "not every shape was tried"
    assert set(served.handler._runner._graphs) == seen, "not every shape was captured"
    assert np.ptp(scores, axis=0).min() > 5 * TOLERANCE[dtype], (
        "the scores are too alike to tell one text's from another"
    )


def test_mixed_batches_equal_eager(bert: Path) -> None:
    served = Served("text_classifier", bert, gpu=0, batching__max_instances=8, batching__lengths=[8, 24, 64],
                    handler__top_k=0)  # fmt: skip
    random = np.random.default_rng(1)
    for _ in range(30):
        requests = [
            [random.integers(5, 100, random.integers(1, 65)).tolist() for _ in range(random.integers(1, 6))]
            for _ in range(random.integers(1, 9))
        ]
        bodies = [({"instances": [{"input_ids": row} for row in rows]}, "application/json") for rows in requests]
        for rows, answer in zip(requests, served.ask(*bodies), strict=True):
            given = [{one["label"]: one["score"] for one in row} for row in answer.json["predictions"]]
            found = np.array([[row["NEGATIVE"], row["POSITIVE"]] for row in given])
            assert np.abs(found - eager_bert(bert, rows)).max() < TOLERANCE["fp32"]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_embeddings_equal_eager(bert: Path, dtype: str) -> None:
    from transformers import AutoModel

    served = Served(
        "text_classifier", bert, gpu=0, batching__dtype=dtype, batching__lengths=[8, 24], handler__task="embedding"
    )
    model = AutoModel.from_pretrained(bert).eval()
    rows = [[5, 6, 7], [8] * 8, [9] * 20, [10] * 24]
    answers = served.ask(*[({"input_ids": row}, "application/json") for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        with torch.inference_mode():
            mean = model(input_ids=torch.tensor([row])).last_hidden_state.mean(1)
        wanted = torch.nn.functional.normalize(mean)[0].numpy()
        assert np.abs(np.array(answer.json["embedding"]) - wanted).max() < TOLERANCE[dtype] * 10


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_ranking_equals_eager(dlrm: Path, dtype: str) -> None:
    served = Served("ranker", dlrm, gpu=0, batching__dtype=dtype, batching__rows=[16, 64, 256],
                    batching__max_instances=256)  # fmt: skip
    cpu = Served("ranker", dlrm)
    random = np.random.default_rng(2)
    for counts in ([1], [16], [17, 3], [100, 200, 5], [700]):
        bodies = [
            npy(np.hstack([random.random((count, 13)), random.integers(0, 100, (count, 26))]).astype("float32"))
            for count in counts
        ]
        for mine, other in zip(served.ask(*bodies), cpu.ask(*bodies), strict=True):
            assert np.abs(np.array(mine.json["scores"]) - other.json["scores"]).max() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_images_equal_eager(resnet: Path, dtype: str) -> None:
    import io

    from PIL import Image

    served = Served("image_classifier", resnet, gpu=0, batching__dtype=dtype, handler__top_k=0)
    cpu = Served("image_classifier", resnet, handler__top_k=0)
    random = np.random.default_rng(3)
    files = []
    for size in ((40, 40), (64, 48), (32, 90), (200, 210), (37, 37)):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(file, "PNG")
        files.append((file.getvalue(), "image/png"))
    for mine, other in zip(served.ask(*files), cpu.ask(*files), strict=True):
        wanted = {one["label"]: one["score"] for one in other.json}
        for one in mine.json:
            assert abs(one["score"] - wanted[one["label"]]) < TOLERANCE[dtype]


def test_compiled_equals_eager(bert: Path) -> None:
    served = Served(
        "text_classifier", bert, gpu=0, batching__lengths=[16], batching__rows=[2], batching__max_instances=2,
        batching__compile=True, handler__top_k=0,
    )  # fmt: skip
    rows = [[5, 6, 7], list(range(5, 21))]
    answers = served.ask(*[({"input_ids": row}, "application/json") for row in rows])
    for answer, expected in zip(answers, eager_bert(bert, rows), strict=True):
        given = {one["label"]: one["score"] for one in answer.json}
        assert np.abs(np.array([given["NEGATIVE"], given["POSITIVE"]]) - expected).max() < TOLERANCE["fp32"] * 5


def test_out_of_memory_halves_and_is_remembered() -> None:
    """In a process of its own, whose share of the memory is limited."""
    run_alone(
        """
        torch.cuda.set_per_process_memory_fraction(3 * 2**30 / torch.cuda.mem_get_info()[1])

        class Hungry(BatchHandler):
            inputs = {"x": Input("float32", (4,))}
            def load(self, folder): return torch.nn.Identity()
            def decode(self, request): return Instances({"x": request.array("float32", (4,))})
            def run(self, batch):
                taken = torch.ones(batch.shape.rows, 2**28 // 4, device="cuda")  # 256 MiB for each row
                return batch["x"] + taken[:, :4] - 1
            def encode(self, result, request): return result["output"]

        for graphs in (True, False):
            handler, context = Hungry(), Fake({"batching": {"max_instances": 32, "cuda_graphs": graphs}})
            handler.initialize(context)
            assert handler.grid.cap(0) < 12, handler.grid.cap(0)
            handler._runner.counts.graph_hits = 0
            rows = [[float(i)] * 4 for i in range(40)]
            answers = handler.handle([{"body": rows}], context)
            assert json.loads(answers[0]) == rows, answers
            assert context.statuses == {}
            del handler
            torch.cuda.empty_cache()
        print("as wanted")
        """
    )


def test_lost_device_answers_503_and_the_worker_leaves() -> None:
    """A device-side assert kills the process's context for good: nothing is retried, and the process ends."""
    done = run_alone(
        """
        class Faulty(BatchHandler):
            inputs = {"x": Input("int64", (1,))}
            def load(self, folder): return torch.nn.Embedding(10, 4)
            def decode(self, request): return Instances({"x": request.array("int64", (1,))})
            def run(self, batch): return self.model(batch["x"][:, 0])
            def encode(self, result, request): return result["output"]

        handler, context = Faulty(), Fake({"batching": {"max_instances": 4}})
        handler.initialize(context)
        assert len(json.loads(handler.handle([{"body": [[3]]}], context)[0])) == 1
        answers = handler.handle([{"body": [[3]]}, {"body": [[99]]}, {"body": [[4]]}], context)
        assert context.statuses == {0: 503, 1: 503, 2: 503}, (context.statuses, answers)
        print("as wanted", flush=True)
        time.sleep(20)
        print("still here")
        """,
        status=70,
    )
    assert "still here" not in done.stdout


def run_alone(program: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    prelude = """
        import json, time, torch
        from ts_mps.batching import *
        class Fake:
            model_name, manifest = "m", {}
            system_properties = {"model_dir": "/tmp", "gpu_id": 0}
            def __init__(self, config): self.model_yaml_config, self.statuses = config, {}
            def get_all_request_header(self, index): return {"body": {"content-type": "application/json"}}
            def set_response_status(self, code, phrase, idx): self.statuses[idx] = code
            def set_response_content_type(self, idx, value): pass
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(program)],
        capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert "as wanted" in done.stdout
    return done


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    build_module("text_generator").tiny(folder)
    return folder


def test_generated_tokens_equal_those_of_transformers(qwen: Path) -> None:
    """In float32, where ties between logits are rare: prompts and answers of any length, alone and in batches."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(qwen).eval().cuda()
    served = Served("text_generator", qwen, gpu=0, batching__lengths=[8, 24, 64], batching__max_instances=8,
                    handler__max_new_tokens=40)  # fmt: skip
    random = np.random.default_rng(4)
    for count in (1, 2, 3, 5, 8, 8, 8):
        prompts = [random.integers(5, 250, random.integers(1, 65)).tolist() for _ in range(count)]
        wanted = random.integers(1, 41, count).tolist()
        bodies = [
            ({"input_ids": ids, "max_tokens": tokens}, "application/json")
            for ids, tokens in zip(prompts, wanted, strict=True)
        ]
        for ids, tokens, answer in zip(prompts, wanted, served.ask(*bodies), strict=True):
            with torch.inference_mode():
                whole = model.generate(torch.tensor([ids]).cuda(), max_new_tokens=tokens, do_sample=False)
            expected = [token for token in whole[0, len(ids) :].tolist() if token != model.config.eos_token_id]
            assert answer.json["token_ids"] == expected
    assert served.handler._runner._graphs, "nothing was captured"
    bodies = [({"input_ids": [7, 8, 9], "max_tokens": 30}, "application/json")]
    served.handler._runner.counts.graph_misses = 0
    alone = served.ask(*bodies)[0].json["token_ids"]
    sampled = {"input_ids": [7, 8, 9], "max_tokens": 30, "temperature": 1.0, "seed": 11, "top_p": 0.9}
    one = served.ask((sampled, "application/json"))[0].json["token_ids"]
    mixed = served.ask(*bodies, (sampled, "application/json"), ({"input_ids": [3] * 50, "max_tokens": 5}, JSON))
    assert (mixed[0].json["token_ids"], mixed[1].json["token_ids"]) == (alone, one)
    assert one != alone
    assert served.handler._runner.counts.graph_misses == 0


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_generation_in_half_precision_follows_the_model(qwen: Path, dtype: str) -> None:
    """Each token that is chosen is one whose float32 logit is within the dtype's error of the best."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(qwen).eval()
    served = Served("text_generator", qwen, gpu=0, batching__dtype=dtype, batching__lengths=[8, 24],
                    batching__max_instances=4, handler__max_new_tokens=16)  # fmt: skip
    prompts = [[5, 6, 7], [8] * 20, [9, 10] * 4, [200]]
    answers = served.ask(*[({"input_ids": ids, "max_tokens": 16}, JSON) for ids in prompts])
    for ids, answer in zip(prompts, answers, strict=True):
        chosen = answer.json["token_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([ids + chosen])).logits[0, len(ids) - 1 : -1]
        lost = logits.max(-1).values - logits.gather(1, torch.tensor(chosen)[:, None])[:, 0]
        spread = float(logits.max() - logits.min())
        assert float(lost.max()) < {"fp16": 0.01, "bf16": 0.05}[dtype] * spread


def test_a_worker_that_lost_its_gpu_answers_and_is_replaced(serving: Serving) -> None:
    """On the real server under MPS: 503 for its whole batch, nothing for its neighbour, and a new worker after it."""
    fails = """
import torch
from ts_mps.batching import BatchHandler, Input, Instances

class Table(BatchHandler):
    inputs = {"x": Input("int64", (1,))}
    def load(self, folder): return torch.nn.Embedding(10, 2)
    def decode(self, request): return Instances({"x": request.array("int64", (1,))})
    def run(self, batch): return self.model(batch["x"][:, 0])
    def encode(self, result, request): return result["output"]
"""
    serving.archive("table", fails, workers=1, batchSize=2)
    serving.archive("other", fails, workers=1, batchSize=2)
    started = serving.start("--models", "table.mar", "other.mar", "--disable-token-auth", "--mps", "on")
    assert started.returncode == 0, started.stderr
    host = load_state(serving.paths()).endpoints.inference
    url = f"http://{host.host}:{host.port}/predictions"
    pids = {worker.slot.model: worker.pid for worker in serving.workers()}
    assert requests.post(f"{url}/table", json=[[3]], timeout=30).status_code == 200
    lost = requests.post(f"{url}/table", json=[[99]], timeout=30)
    assert (lost.status_code, lost.json()["code"]) == (503, 503)
    assert "being replaced" in lost.json()["message"]
    assert requests.post(f"{url}/other", json=[[3]], timeout=30).status_code == 200, "the neighbour was harmed"
    assert eventually(lambda: requests.post(f"{url}/table", json=[[3]], timeout=60).status_code == 200, 60)
    after = {worker.slot.model: worker.pid for worker in serving.workers()}
    assert after["table"] != pids["table"]
    assert after["other"] == pids["other"]
    assert serving.ts_mps("stop").returncode == 0
    assert serving.left() == []

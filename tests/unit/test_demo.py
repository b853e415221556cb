from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ts_mps.demo.client import load
from ts_mps.demo.run import archive, load_digits, prepare
from ts_mps.errors import TsMpsError
from ts_mps.torchserve.api import Api
from ts_mps.torchserve.archives import read_archive
from ts_mps.torchserve.client import ApiError


class Context:
    """What the handler uses of TorchServe's context."""

    def __init__(self, model_dir: Path) -> None:
        self.manifest = json.loads((model_dir / "MAR-INF" / "MANIFEST.json").read_text())
        self.system_properties = {"model_dir": str(model_dir), "gpu_id": None}
        self.statuses: dict[int, int] = {}

    def set_response_status(self, code: int, phrase: str = "", idx: int = 0) -> None:
        self.statuses[idx] = code


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, float]]) -> Path:
    store = tmp_path_factory.mktemp("demo") / "model_store"
    return prepare(store, 3, lambda what, done: steps.append((what, done)))


@pytest.fixture
def handler(mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The handler as a worker has it: imported from the unpacked archive."""
    with zipfile.ZipFile(mar) as packed:
        packed.extractall(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("demo_handler", "demo_model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import demo_handler

    context = Context(tmp_path)
    service = demo_handler.DigitsHandler()
    service.initialize(context)
    return SimpleNamespace(handle=lambda data: service.handle(data, context), context=context)


def test_archive(mar: Path, steps: list[tuple[str, float]]) -> None:
    found = read_archive(mar)
    assert (mar.name, found.name, found.version, found.handler) == ("digits.mar", "digits", "1.0", "demo_handler.py")
    assert found.config == {"minWorkers": 3, "maxWorkers": 3, "batchSize": 8, "maxBatchDelay": 2}
    with zipfile.ZipFile(mar) as packed:
        assert {"demo_handler.py", "demo_model.py", "digits.pt"} <= set(packed.namelist())
    assert [path.name for path in mar.parent.iterdir()] == ["digits.mar"]
    assert steps[-1] == ("training", 1.0)
    assert [done for _, done in steps] == sorted(done for _, done in steps)


def test_accuracy_on_held_out_images(handler: SimpleNamespace) -> None:
    digits = load_digits()
    assert len(digits.images) == 360
    assert len(digits.images) + len(digits.train_images) == 1797
    answers: list[dict[str, Any]] = []
    for start in range(0, 360, 8):
        answers += handler.handle([{"body": bytearray(image)} for image in digits.images[start : start + 8]])
    correct = sum(answer["digit"] == label for answer, label in zip(answers, digits.labels, strict=True))
    assert correct / 360 >= 0.95
    assert handler.context.statuses == {}


def test_one_bad_request_does_not_spoil_a_batch(handler: SimpleNamespace) -> None:
    digits = load_digits()
    good = {"data": digits.images[0]}
    broken = {"body": digits.images[0][:60]}
    answers = handler.handle([{"body": b"no image"}, good, broken, {}, {"body": {"json": 1}}])
    assert answers[1]["digit"] == digits.labels[0]
    assert handler.context.statuses == {0: 422, 2: 422, 3: 422, 4: 422}
    assert [answer.get("error") for answer in answers] == [answers[0]["error"], None, *[answers[0]["error"]] * 3]


def test_other_sizes_and_formats_are_taken(handler: SimpleNamespace) -> None:
    import io

    from PIL import Image

    digits = load_digits()
    larger = Image.open(io.BytesIO(digits.images[0])).resize((32, 32)).convert("RGB")
    file = io.BytesIO()
    larger.save(file, "BMP")
    (answer,) = handler.handle([{"body": file.getvalue()}])
    assert answer["digit"] == digits.labels[0]


def test_archiving_leaves_the_temporary_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mar: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "thesis.txt").write_text("years of work")
    weights = tmp_path / "digits.pt"
    weights.write_bytes(b"weights")
    archive(weights, tmp_path / "store", 1)
    archive(weights, tmp_path / "store", 2)
    assert read_archive(tmp_path / "store" / "digits.mar").integer("minWorkers") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"digits", "digits.pt", "store"}
    assert (tmp_path / "digits" / "thesis.txt").read_text() == "years of work"
    assert tempfile.gettempdir() == str(tmp_path)


def test_a_model_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(TsMpsError, match=r"store/digits\.mar cannot be written"):
        archive(tmp_path / "weights.pt", tmp_path / "store", 1)


class FakeApi(Api):
    """Knows the digit of an image by its length; fails where told to."""

    def __init__(self, wrong: bytes = b"", failing: bytes = b"") -> None:
        self.wrong, self.failing = wrong, failing
        self.seen: list[bytes] = []

    def predict(self, name: str, body: bytes, content_type: str = "") -> bytes:
        self.seen.append(body)
        if body == self.failing:
            raise ApiError("TorchServe is on fire.", status=503)
        return b"null" if body == self.wrong else json.dumps({"digit": len(body)}).encode()


def test_load_counts_what_clients_saw() -> None:
    images = [b"x", b"xx", b"xxx", b"xxxx"]
    api = FakeApi(wrong=b"xx", failing=b"xxx")
    steps: list[float] = []
    result = load(api, images, [1, 2, 3, 5], 3, rounds=10, progress=lambda what, done: steps.append(done))
    assert sorted(api.seen) == sorted(images * 10)
    assert (result.requests, result.correct, result.accuracy, result.errors) == (40, 10, 0.25, 20)
    assert result.first_error == "The model digits answered with no digit."
    assert result.requests_per_second == pytest.approx(20 / result.seconds)
    assert 0 < result.p50_ms <= result.p99_ms
    assert steps[-1] == 1.0


def test_load_without_any_answer() -> None:
    result = load(FakeApi(failing=b"x"), [b"x"], [1], 2)
    assert (result.accuracy, result.errors, result.p50_ms, result.requests_per_second) == (0.0, 5, 0.0, 0.0)
    assert result.first_error == "TorchServe is on fire."

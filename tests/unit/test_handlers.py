"""The handlers of handlers/ on the CPU, without a server: against transformers' own results, and with bad requests."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import orjson
import pytest
import safetensors.numpy
import torch
from handling import Served, build_module, npy
from PIL import Image

JSON = "application/json"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    build_module("text_classifier").tiny(folder)
    return folder


@pytest.fixture(scope="module")
def texts(bert: Path) -> Served:
    return Served("text_classifier", bert, batching__lengths=[8, 32, 64], handler__top_k=0)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("dlrm")
    build_module("ranker").tiny(folder)
    return Served("ranker", folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("resnet")
    build_module("image_classifier").tiny(folder)
    return Served("image_classifier", folder, batching__decode_threads=2, handler__max_pixels=1_000_000)


def by_transformers(folder: Path, *texts: object) -> np.ndarray:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        rows = [tokenizer(*text if isinstance(text, tuple) else (text,), return_tensors="pt") for text in texts]
        return np.stack([model(**row).logits.softmax(-1)[0].numpy() for row in rows])


def probabilities(row: list) -> list:
    found = {one["label"]: one["score"] for one in row}
    return [found["NEGATIVE"], found["POSITIVE"]]


# -- text ----------------------------------------------------------------------------------------------------------


def test_texts_of_different_length_score_as_each_alone(texts: Served, bert: Path) -> None:
    given = ["good", "the film was very good, i enjoyed it", "bad", "Quite slow & dear! " * 3]
    answers = texts.ask(*[(text, "text/plain") for text in given])
    found = np.array([probabilities(answer.json) for answer in answers])
    assert np.abs(found - by_transformers(bert, *given)).max() < 1e-5


def test_pairs_of_texts(texts: Served, bert: Path) -> None:
    body = {"instances": [{"text": "good food", "text_pair": "bad service"}, {"text": "good"}]}
    answer = texts.ask((body, JSON))[0].json["predictions"]
    found = np.array([probabilities(row) for row in answer])
    assert np.abs(found - by_transformers(bert, ("good food", "bad service"), "good")).max() < 1e-5


def test_token_ids_in_every_format_score_the_same(texts: Served) -> None:
    ids = [2, 10, 11, 12, 3]
    v2 = {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 5], "data": ids}]}
    tensors = safetensors.numpy.save({"input_ids": np.array([ids])})
    answers = texts.ask(
        ({"input_ids": ids}, JSON),
        npy([ids]),
        npy(np.array(ids, dtype="int32")),
        (tensors, "application/x-safetensors"),
        (bytearray(tensors), "application/x-safetensors; a=b"),
        (v2, JSON),
    )
    wanted = probabilities(answers[0].json)
    for answer in answers[1:5]:
        assert probabilities(answer.json[0]) == pytest.approx(wanted, abs=1e-6)
    output = answers[5].json["outputs"][0]
    assert (output["name"], output["shape"], output["datatype"]) == ("scores", [1, 2], "FP32")
    assert output["data"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "kind", "status", "says"),
    [
        ({"input_ids": [1, 10_000]}, JSON, 422, "from 0 to"),
        ({"input_ids": [-1]}, JSON, 422, "from 0 to"),
        ({"input_ids": [1.5]}, JSON, 422, "whole numbers"),
        ({"input_ids": [[1]]}, JSON, 422, "must be a text"),
        ({"input_ids": []}, JSON, 422, "empty"),
        ({"txt": "good"}, JSON, 422, "must be a text"),
        ([], JSON, 422, "no instances"),
        (bytearray(b'{"instances": ["good'), JSON, 400, "not JSON"),
        (bytearray(b"\xff\xfe"), "text/plain", 400, "UTF-8"),
        (b"\x93NUMPY\x01\x00", "application/x-npy", 400, "npy"),
        (npy([["a"]])[0], "application/x-npy", 422, "not numbers"),
        (b"", JSON, 400, "empty"),
        (None, JSON, 400, "empty"),
    ],
)
def test_bad_texts_get_their_own_error(texts: Served, body: object, kind: str, status: int, says: str) -> None:
    good, bad, too = texts.ask(("good", "text/plain"), (body, kind), ("bad", "text/plain"))
    assert (good.status, too.status) == (200, 200)
    assert bad.status == status
    assert says in bad.json["message"]


def test_a_text_that_is_too_long_is_cut_or_refused(bert: Path, texts: Served) -> None:
    long = "good " * 500
    assert texts.ask((long, "text/plain"))[0].status == 200
    strict = Served("text_classifier", bert, batching__lengths=[8, 32, 64], handler__truncate=False)
    answer, other = strict.ask((long, "text/plain"), ("good", "text/plain"))
    assert (answer.status, other.status) == (413, 200)
    assert "the longest served here has 64" in answer.json["message"]


def test_wrong_options_stop_the_load_with_the_key(bert: Path) -> None:
    from ts_mps.batching import ConfigError

    with pytest.raises(ConfigError, match=r"handler\.taks: no such key, did you mean task\?"):
        Served("text_classifier", bert, handler__taks="embedding")
    with pytest.raises(ConfigError, match=r"batching\.lengths: the model has 512 positions"):
        Served("text_classifier", bert, batching__lengths=[16, 1024])


# -- ranking -------------------------------------------------------------------------------------------------------


def candidates(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.hstack([random.random((count, 13)), random.integers(0, 100, (count, 26))]).astype("float32")


def test_ranking_in_every_format_is_the_same(ranker: Served) -> None:
    rows = candidates(7)
    dense, sparse = rows[:, :13], rows[:, 13:].astype("int64")
    both = safetensors.numpy.save({"dense": np.ascontiguousarray(dense), "sparse": sparse})
    objects = [{"dense": d.tolist(), "sparse": s.tolist()} for d, s in zip(dense, sparse, strict=True)]
    answers = ranker.ask(
        npy(rows),
        (rows.tolist(), JSON),
        ({"instances": rows.tolist()}, JSON),
        (both, "application/x-safetensors"),
        (objects, JSON),
        ({"dense": dense.tolist(), "sparse": sparse.tolist()}, JSON),
    )
    for answer in answers:
        scores = answer.json.get("scores") or answer.json["predictions"]
        assert scores == pytest.approx(answers[0].json["scores"], abs=1e-6)


def test_top_k_names_the_best_candidates(ranker: Served) -> None:
    rows = candidates(50)
    every = np.array(ranker.ask(npy(rows))[0].json["scores"])
    top = ranker.ask(({"dense": rows[:, :13].tolist(), "sparse": rows[:, 13:].tolist(), "top_k": 3}, JSON))[0].json[
        "top"
    ]
    assert [one["index"] for one in top] == np.argsort(-every)[:3].tolist()


def test_top_k_in_every_style(ranker: Served) -> None:
    rows = candidates(20)
    every = np.array(ranker.ask(npy(rows))[0].json["scores"])
    best = np.argsort(-every)[:2].tolist()
    v1, scored = ranker.ask(({"instances": rows.tolist(), "top_k": 2}, JSON), ({"instances": rows.tolist()}, JSON))
    assert [one["index"] for one in v1.json["predictions"]] == best
    assert scored.json["predictions"] == pytest.approx(every.tolist())
    data = {"name": "rows", "shape": [20, 39], "datatype": "FP32", "data": rows.ravel().tolist()}
    v2 = ranker.ask(({"inputs": [data], "parameters": {"top_k": 2}}, JSON))[0].json["outputs"]
    assert [(one["name"], one["shape"]) for one in v2] == [("index", [2]), ("score", [2])]
    assert v2[0]["data"] == best


def test_parameters_of_a_form(ranker: Served) -> None:
    body, kind = npy(candidates(5))
    handler, context = ranker.handler, ranker.context
    context.headers, context.statuses = [{"data": {"content-type": kind}, "top_k": {"content-type": ""}}], {}
    answer = orjson.loads(handler.handle([{"data": body, "top_k": bytearray(b"2")}], context)[0])
    assert len(answer["top"]) == 2


def test_binary_answers(ranker: Served) -> None:
    rows = candidates(5)
    answer = ranker.ask(npy(rows), accept="application/x-npy")[0]
    assert answer.content_type == "application/x-npy"
    scores = np.load(io.BytesIO(answer.body))
    assert scores == pytest.approx(ranker.ask(npy(rows))[0].json["scores"], abs=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (npy(np.zeros((2, 38), "float32")), 422, "39"),
        (npy(np.full((1, 39), 100.0)), 422, "column 0 must be from 0 to 99"),
        (npy(np.full((1, 39), np.nan)), 422, "NaN"),
        (npy(np.zeros((0, 39))), 422, "no instances"),
        (([{"dense": [0] * 13}], JSON), 422, "no 'sparse'"),
        (({"dense": [[0] * 13] * 2, "sparse": [[0] * 26]}, JSON), 422, "one row each"),
        (({"dense": [[0] * 12], "sparse": [[0] * 26]}, JSON), 422, "dense"),
        (([], JSON), 422, ""),
        (({"dense": [[0] * 13], "sparse": [[0] * 26], "top_k": -1}, JSON), 422, "top_k"),
        (({}, JSON), 422, ""),
        ((b"no", "text/html"), 415, "text/html"),
    ],
)
def test_bad_candidates_get_their_own_error(ranker: Served, body: tuple, status: int, says: str) -> None:
    good, bad = ranker.ask(npy(candidates(3)), body)
    assert good.status == 200
    assert (bad.status, says in bad.json["message"]) == (status, True), bad.body


# -- images --------------------------------------------------------------------------------------------------------


def image(size: tuple[int, int] = (50, 40), kind: str = "PNG", seed: int = 0, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def test_images_in_every_form(images: Served) -> None:
    file = image()
    text = base64.b64encode(file).decode()
    answers = images.ask(
        (file, "image/png"), (bytearray(file), ""), ([text, {"b64": text}], JSON), (image(kind="JPEG"), "image/jpeg")
    )
    assert [answer.status for answer in answers] == [200] * 4
    assert answers[1].json == answers[0].json
    assert answers[2].json == [answers[0].json] * 2
    v2 = {"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": [text, text]}]}
    output = images.ask((v2, JSON))[0].json["outputs"][0]
    assert output["shape"] == [2, 10]
    assert max(output["data"]) == pytest.approx(answers[0].json["score"])


def test_preprocessing_is_that_of_transformers(images: Served) -> None:
    """Against transformers' own processor for the same folder, by the scores."""
    from transformers import AutoModelForImageClassification, ConvNextImageProcessorPil

    folder = Path(images.context.system_properties["model_dir"])
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    saved = json.loads((folder / "preprocessor_config.json").read_text())
    processor = ConvNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_pct=32 / saved["size"]["shortest_edge"],
        resample=saved["resample"],
        image_mean=saved["image_mean"],
        image_std=saved["image_std"],
    )
    for size in ((60, 60), (50, 70), (90, 37)):
        file = image(size)
        pixels = processor(Image.open(io.BytesIO(file)), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            wanted = model(pixels).logits.softmax(-1).max()
        assert images.ask((file, "image/png"))[0].json["score"] == pytest.approx(float(wanted), abs=2e-3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_other_modes_are_decoded(images: Served, mode: str) -> None:
    assert images.ask((image(mode=mode), "image/png"))[0].status == 200


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (image()[:100], "image/png", 422),
        (image(kind="GIF"), "image/gif", 422),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 100, "image/png", 422),
        (image((1100, 1000)), "image/png", 413),
        (image((4000, 1)), "image/png", 422),
        ("not base64!", "text/plain", 400),
        ({"b64": 7}, JSON, 422),
        (npy(np.zeros((3, 3)))[0], "application/x-npy", 415),
    ],
)
def test_bad_images_get_their_own_error(images: Served, body: object, kind: str, status: int) -> None:
    good, bad = images.ask((image(), "image/png"), (body, kind))
    assert (good.status, bad.status) == (200, status), bad.body


def test_a_decompression_bomb_is_refused_by_its_header(images: Served) -> None:
    """30,000 x 30,000 black pixels are 2.7 GB once decoded, and under a megabyte as a file."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    body = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**7)))
        + chunk(b"IEND", b"")
    )
    answer = images.ask((body, "image/png"))[0]
    assert answer.status in (413, 422)


# -- limits of a whole request -------------------------------------------------------------------------------------


def test_images_are_counted_before_any_is_decoded(images: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(images.handler, "_pixels", lambda *_: decoded.append(1))
    many = [base64.b64encode(image((1, 1))).decode()] * 5000
    answer = images.ask((many, JSON))[0]
    assert (answer.status, decoded) == (413, [])


def test_the_pixels_of_a_request_are_limited_together(images: Served) -> None:
    """A PNG of 0.9 million black pixels has about a kilobyte: a body of megabytes could hold thousands of them."""
    file = io.BytesIO()
    Image.new("1", (950, 950)).save(file, "PNG")
    one = base64.b64encode(file.getvalue()).decode()
    allowed = images.handler.options.max_request_pixels // 950**2
    assert images.ask(([one] * 3, JSON))[0].status == 200
    answer = images.ask(([one] * (allowed + 1), JSON))[0]
    assert (answer.status, "together" in answer.json["message"]) == (413, True)


def test_much_text_is_refused_before_it_is_tokenised(texts: Served, bert: Path) -> None:
    answers = texts.ask(("! " * 200_000, "text/plain"), (["! " * 1000] * 140, JSON))
    # The first is cut to what can matter, the second has too much in all.
    assert [answer.status for answer in answers] == [200, 413]
    assert "characters" in answers[1].json["message"]
    strict = Served("text_classifier", bert, batching__lengths=[8], handler__truncate=False)
    assert strict.ask(("! " * 200_000, "text/plain"))[0].status == 413


def test_input_ids_that_are_a_text_are_refused(texts: Served) -> None:
    assert texts.ask(({"input_ids": "abc"}, JSON))[0].status == 422


# -- preprocessing of other models ---------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path, images: Served):
    """A copy of the image model with another processor's config."""
    import shutil

    def served(**config: object) -> Served:
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        shutil.copytree(images.context.system_properties["model_dir"], folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(config))
        return Served("image_classifier", folder)

    return served


def test_a_processor_with_height_and_width_squeezes(saved) -> None:
    from transformers import ViTImageProcessorPil

    served = saved(size={"height": 32, "width": 32}, resample=2)
    theirs = ViTImageProcessorPil(size={"height": 32, "width": 32}, do_rescale=False, do_normalize=False, resample=2)
    picture = Image.open(io.BytesIO(image((90, 30))))
    wanted = theirs(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.abs(served.handler._cropped(picture).astype(float) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"do_normalize": False}, "do_normalize"),
        ({"rescale_factor": 0.5}, "rescale_factor"),
        ({"resample": 1}, "resample"),
        ({"size": {"longest_edge": 224}}, "size"),
        ({"size": {"height": 32, "width": 64}}, "size"),
    ],
)
def test_a_processor_that_is_not_followed_stops_the_load(saved, config: dict, says: str) -> None:
    from ts_mps.batching import ConfigError

    with pytest.raises(ConfigError, match=says):
        saved(**config)


def test_nulls_in_a_processor_are_as_if_absent(saved) -> None:
    served = saved(size={"shortest_edge": 32}, crop_pct=None, image_mean=None, resample=None)
    assert served.ask((image(), "image/png"))[0].status == 200


def test_sixteen_bits_of_grey_keep_their_shades(images: Served) -> None:
    grey = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    pixels, _ = images.handler._pixels(file.getvalue(), 10**6)
    assert 110 < pixels.mean() < 140


@pytest.mark.parametrize("option", ["top_k", "max_pixels", "crop"])
def test_options_out_of_range_stop_the_load(images: Served, option: str) -> None:
    from ts_mps.batching import ConfigError

    with pytest.raises(ConfigError, match=rf"handler\.{option}"):
        Served("image_classifier", Path(images.context.system_properties["model_dir"]), **{f"handler__{option}": -1})


def test_a_pair_that_is_no_text_is_refused(texts: Served) -> None:
    assert texts.ask(({"text": "a", "text_pair": 5}, JSON))[0].status == 422


@pytest.mark.parametrize("parameters", [{"topk": 2}, {"top_k": 2.7}, {"top_k": "x"}])
def test_wrong_parameters_of_the_ranker(ranker: Served, parameters: dict) -> None:
    answer = ranker.ask(({"instances": candidates(3).tolist(), **parameters}, JSON))[0]
    assert answer.status == 422

"""text_generator on the CPU, against transformers' own generate."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))

from handling import Served, build_module, npy

from ts_mps.batching.decoder import load_decoder
from ts_mps.batching.errors import ConfigError, RequestError
from ts_mps.batching.following import FULL, STOPPED, Follower
from ts_mps.batching.sampling import Sampling, Wish, draw

JSON = "application/json"
VOCABULARY = 300
END = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 with random weights, large enough for its tokens to vary, and a tokenizer of single bytes."""
    folder = tmp_path_factory.mktemp("qwen2")
    build_module("text_generator").tiny(
        folder, vocab_size=VOCABULARY, max_position_embeddings=512, initializer_range=0.3
    )
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def serve(folder: Path, **config: Any) -> Served:
    given = {"handler__max_new_tokens": 24, "handler__default_max_tokens": 12, "batching__lengths": [8, 32], **config}
    return Served("text_generator", folder, **given)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    yield serve(folder)


def ask(served: Served, *documents: Any) -> list[Any]:
    return [answer.json for answer in served.ask(*((json.dumps(one).encode(), JSON) for one in documents))]


def greedy(reference: Any, prompt: list[int], tokens: int) -> list[int]:
    out = reference.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=tokens, do_sample=False
    )
    return [token for token in out[0, len(prompt) :].tolist() if token != END]


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


# -- greedy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, 8, 9, 32])
def test_alone_the_tokens_are_those_of_transformers(served: Served, reference: Any, length: int) -> None:
    ids = prompt(length, length)
    (answer,) = ask(served, {"input_ids": ids, "max_tokens": 24})
    assert answer["token_ids"] == greedy(reference, ids, 24)
    assert answer["prompt_tokens"] == length
    assert answer["completion_tokens"] == len(answer["token_ids"])
    assert len(set(answer["token_ids"])) > 4  # or the model is too dull to test anything
    assert "seed" not in answer


@pytest.mark.parametrize("lengths", [[8, 8, 8], [1, 3, 8, 20, 32], [32, 32], list(range(1, 33))])
def test_in_a_batch_of_any_lengths_the_tokens_are_the_same(served: Served, reference: Any, lengths: list[int]) -> None:
    asked = [
        {"input_ids": prompt(100 + row, length), "max_tokens": 1 + (7 * row) % 24} for row, length in enumerate(lengths)
    ]
    answers = ask(served, *asked)
    for one, answer in zip(asked, answers, strict=True):
        expected = greedy(reference, one["input_ids"], one["max_tokens"])
        assert answer["token_ids"] == expected
        assert answer["finish_reason"] == ("length" if len(expected) == one["max_tokens"] else "stop")


def test_runs_follow_one_another(folder: Path, reference: Any) -> None:
    served = serve(folder, batching__max_instances=2)
    asked = [{"input_ids": prompt(row, 1 + row), "max_tokens": 10} for row in range(9)]
    for one, answer in zip(asked, ask(served, *asked), strict=True):
        assert answer["token_ids"] == greedy(reference, one["input_ids"], 10)


def test_padded_rows_and_late_looks_as_on_a_gpu(folder: Path, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ts_mps.batching.handler.BatchHandler._pads_rows", lambda self: True)
    monkeypatch.setattr("ts_mps.batching.memory._SLOTS", 8)  # so that the span grows within an answer
    served = serve(folder, batching__max_instances=4)
    served.handler._runner._lag = 2
    asked = [{"input_ids": prompt(row, 1 + 3 * row), "max_tokens": 24 - 3 * row} for row in range(7)]
    drawing = {"input_ids": prompt(8, 4), "temperature": 0.8, "seed": 5}
    answers = ask(served, *asked, drawing)
    for one, answer in zip(asked, answers, strict=False):
        assert answer["token_ids"] == greedy(reference, one["input_ids"], one["max_tokens"])
    assert ask(served, drawing)[0] == answers[-1]


def test_one_token(folder: Path, reference: Any) -> None:
    served = serve(folder, handler__max_new_tokens=1)
    (answer,) = ask(served, {"input_ids": prompt(0, 4)})
    assert answer["token_ids"] == greedy(reference, prompt(0, 4), 1)


# -- stops -------------------------------------------------------------------------------------------------------------


def test_end_tokens(served: Served, folder: Path, reference: Any) -> None:
    ids = prompt(5, 5)
    whole = greedy(reference, ids, 24)
    end = next(token for token in whole[3:] if token not in whole[:3])
    cut = whole[: whole.index(end)]
    asked, default = ask(served, {"input_ids": ids, "max_tokens": 24, "stop_token_ids": [end]}, {"input_ids": ids})
    assert (asked["token_ids"], asked["finish_reason"]) == (cut, "stop")
    assert (default["token_ids"], default["finish_reason"]) == (whole[:12], "length")
    option = serve(folder, handler__stop_token_ids=[end])
    first, ignoring = ask(option, {"input_ids": ids}, {"input_ids": ids, "ignore_eos": True})
    assert first["token_ids"] == cut
    assert ignoring["token_ids"] == whole[:12]


def test_the_models_own_end_token(folder: Path, reference: Any) -> None:
    ids = prompt(5, 5)
    whole = greedy(reference, ids, 24)
    end = next(token for token in whole[3:] if token not in whole[:3])
    served = serve(folder)
    served.handler._end_ids = frozenset([end])
    assert ask(served, {"input_ids": ids})[0]["token_ids"] == whole[: whole.index(end)]
    assert serve(folder).handler._end_ids == {END}


def test_stop_texts_cut_the_answer(served: Served) -> None:
    one = {"input_ids": prompt(9, 6), "max_tokens": 24, "ignore_eos": True}
    (whole,) = ask(served, one)
    text = whole["text"]
    stop = next(character for character in text[1:] if character.isascii() and character != text[0])
    both = ask(served, {**one, "stop": stop}, {**one, "stop": ["no such text", "\x00\x01"]})
    assert both[0]["text"] == text[: text.index(stop)]
    assert both[0]["finish_reason"] == "stop"
    assert both[0]["completion_tokens"] < 24
    assert whole["token_ids"][: both[0]["completion_tokens"]] == both[0]["token_ids"]
    assert both[1] == whole


def test_a_follower_finds_the_first_stop_text_in_half_characters() -> None:
    text = "Grüße, 世界! ENDE und mehr".encode()

    def text_of(tokens: Any) -> str:
        return bytes(tokens).decode("utf-8", "replace")

    follower = Follower(Wish(100, stop=("mehr", "! ENDE", "DE")), text_of)
    seen = 0
    for token in text:
        seen += 1
        if not follower.goes_on(token):
            break
    assert text_of(follower.tokens)[: follower.characters] == "Grüße, 世界"
    assert follower.finish == STOPPED
    assert text[:seen].decode().endswith("! ENDE")
    late = Follower(Wish(3, stop=("zzz",)), text_of)
    assert [late.goes_on(65), late.goes_on(66), late.goes_on(67)] == [True, True, False]
    assert (late.finish, late.characters) == (FULL, -1)


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_batch(served: Served) -> None:
    one = {"input_ids": prompt(1, 7), "temperature": 1.0, "seed": 11, "max_tokens": 20, "ignore_eos": True}
    others = [{"input_ids": prompt(2, 30), "temperature": 0.7, "top_p": 0.9}, {"input_ids": prompt(3, 2)}, {**one}]
    alone = ask(served, one)[0]
    assert alone["seed"] == 11
    batch = ask(served, *others, one)
    assert batch[3] == alone == batch[2]
    assert ask(served, {**one, "seed": 12})[0]["token_ids"] != alone["token_ids"]
    greedy_one = {key: one[key] for key in ("input_ids", "max_tokens")}
    assert ask(served, greedy_one, one)[0] == ask(served, greedy_one)[0]


def test_a_seed_that_was_drawn_is_answered_and_can_be_sent(served: Served) -> None:
    one = {"input_ids": prompt(1, 7), "temperature": 2.0}
    first, second = ask(served, one, one)
    assert first["seed"] != second["seed"]
    assert first["token_ids"] != second["token_ids"]
    assert ask(served, {**one, "seed": first["seed"]})[0] == first


def test_top_k_of_one_is_greedy(served: Served) -> None:
    one = {"input_ids": prompt(4, 12), "max_tokens": 24}
    sampled, plain = ask(served, {**one, "temperature": 3.0, "top_k": 1}, one)
    assert sampled["token_ids"] == plain["token_ids"]


def drawn(logits: torch.Tensor, count: int = 20_000, **wish: Any) -> np.ndarray[Any, Any]:
    """How often each token is drawn."""
    one = Wish(1, **{"temperature": 1.0, "seed": 3, **wish})
    uniform = torch.from_numpy(one.uniforms(count))
    rows = logits.expand(count, -1)
    found = draw(
        rows,
        torch.full((count,), one.temperature),
        torch.full((count,), one.top_k),
        torch.full((count,), one.top_p),
        uniform,
    )
    return np.bincount(found.numpy(), minlength=logits.numel()) / count


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 3.0, 1.0, -2.0, 2.0])
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.softmax(logits / temperature, 0).numpy()
        assert np.abs(drawn(logits, temperature=temperature) - expected).max() < 0.015


def test_top_k_and_top_p_restrict_the_draw() -> None:
    share = torch.tensor([0.1, 0.5, 0.05, 0.3, 0.05])
    logits = share.log()
    assert np.abs(drawn(logits, top_k=2) - [0, 0.625, 0, 0.375, 0]).max() < 0.015
    assert np.abs(drawn(logits, top_p=0.75) - [0, 0.625, 0, 0.375, 0]).max() < 0.015
    assert (drawn(logits, top_p=1e-6) == [0, 1, 0, 0, 0]).all()
    assert (drawn(logits, top_k=3, top_p=0.5) == [0, 1, 0, 0, 0]).all()
    assert (drawn(logits, top_k=99) > 0).all()


def test_draws_at_the_edges_stay_within_what_is_kept() -> None:
    logits = torch.tensor([[0.0, -1e9, 5.0, float("-inf")]] * 3)
    ones = torch.ones(3)
    uniform = torch.tensor([0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))])
    found = draw(logits, ones, torch.zeros(3, dtype=torch.int64), ones, uniform)
    assert found.tolist()[:2] == [2, 2]
    assert found[2] == 0
    broken = draw(logits * float("nan"), ones, torch.zeros(3, dtype=torch.int64), ones, uniform)
    assert ((broken >= 0) & (broken < 4)).all()


# -- requests ----------------------------------------------------------------------------------------------------------


def test_text_in_every_format(served: Served) -> None:
    (one,) = ask(served, {"prompt": "hello", "max_tokens": 6})
    (listed,) = ask(served, [{"prompt": "hello", "max_tokens": 6}, {"prompt": "x"}])
    assert listed[0] == one
    (v1,) = ask(served, {"instances": ["hello", {"prompt": "hello", "max_tokens": 2}], "max_tokens": 6})
    assert v1["predictions"][0] == one
    assert v1["predictions"][1]["token_ids"] == one["token_ids"][:2]
    (plain,) = served.ask(("hello", "text/plain"))
    assert plain.json["token_ids"][:6] == one["token_ids"]
    assert one["prompt_tokens"] == 5


def test_kserve_v2(served: Served) -> None:
    (one,) = ask(served, {"prompt": "hello", "max_tokens": 6})
    text = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["hello", "goodbye"]}
    (answer,) = ask(served, {"id": "a", "inputs": [text], "parameters": {"max_tokens": 6}})
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert answer["id"] == "a"
    assert outputs["text"]["data"][0] == one["text"]
    assert outputs["token_ids"]["shape"] == [2, 6]
    assert outputs["token_ids"]["data"][:6] == one["token_ids"]
    assert outputs["finish_reason"]["data"] == ["length", "length"]
    ids = {"name": "input_ids", "shape": [1, 3], "datatype": "INT64", "data": [1, 2, 3]}
    (answer,) = ask(served, {"inputs": [ids], "parameters": {"max_tokens": 3, "temperature": 0.5, "seed": 1}})
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert (outputs["seed"], outputs["prompt_tokens"], outputs["completion_tokens"]) == ([1], [3], [3])


def test_arrays(served: Served) -> None:
    (one,) = ask(served, {"input_ids": [1, 2, 3]})
    (answer,) = served.ask(npy([[1, 2, 3], [4, 5, 6]]))
    assert answer.json[0] == one
    from safetensors.numpy import load

    (packed,) = served.ask((json.dumps({"input_ids": [1, 2, 3]}).encode(), JSON), accept="application/x-safetensors")
    assert load(packed.body)["token_ids"].tolist() == [one["token_ids"]]


WRONG: list[tuple[Any, str]] = [
    ({"prompt": 5}, "prompt"),
    ({}, "prompt"),
    ({"prompt": "a", "input_ids": [1]}, "prompt"),
    ({"input_ids": "1"}, "input_ids"),
    ({"input_ids": [[1]]}, "flat"),
    ({"input_ids": [1.5]}, "whole"),
    ({"input_ids": [VOCABULARY]}, "299"),
    ({"input_ids": [-1]}, "299"),
    ({"input_ids": []}, "empty"),
    ({"prompt": ""}, "empty"),
    ({"prompt": "a", "max_tokens": 25}, "24"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": "5"}, "max_tokens"),
    ({"prompt": "a", "temperature": -1}, "temperature"),
    ({"prompt": "a", "temperature": 1e-30}, "temperature: must be 0"),
    ({"prompt": "a", "temperature": True}, "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "top_p": 1.1}, "top_p"),
    ({"prompt": "a", "top_k": -1}, "top_k"),
    ({"prompt": "a", "seed": 2**63}, "seed"),
    ({"prompt": "a", "seed": -1}, "seed"),
    ({"prompt": "a", "stop": ""}, "stop"),
    ({"prompt": "a", "stop": ["x"] * 17}, "stop"),
    ({"prompt": "a", "stop": [5]}, "stop"),
    ({"prompt": "a", "maxtokens": 5}, "there is no such parameter"),
    ({"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]}, "input_ids"),
    (5, "prompt"),
]


def test_a_wrong_request_gets_a_sentence_and_its_neighbours_their_answers(served: Served) -> None:
    good = {"prompt": "hello", "max_tokens": 3}
    (alone,) = ask(served, good)
    bodies = [document for wrong, _ in WRONG for document in (wrong, good)]
    answers = served.ask(*((json.dumps(one).encode(), JSON) for one in bodies))
    for (wrong, word), refused, served_on in zip(WRONG, answers[::2], answers[1::2], strict=True):
        assert refused.status == 422, (wrong, refused.body)
        assert word in refused.json["message"], (wrong, refused.json["message"])
        assert refused.json["message"].endswith(".")
        assert served_on.json == alone


def test_a_long_prompt_is_refused_or_cut(served: Served, folder: Path) -> None:
    long = {"prompt": "a" * 30 + "bcdef"}
    (refused,) = served.ask((json.dumps(long).encode(), JSON))
    assert refused.status == 413
    for keep, kept in (("end", long["prompt"][-32:]), ("start", long["prompt"][:32])):
        cutting = serve(folder, handler__truncate=keep)
        cut, same = ask(cutting, long, {"prompt": kept})
        assert cut == same
        assert cut["prompt_tokens"] == 32


def test_a_cut_prompt_keeps_its_special_tokens(folder: Path, tmp_path: Path) -> None:
    """A Llama-like tokenizer begins every prompt with a token that the model was trained with."""
    from tokenizers import Tokenizer, processors

    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    begin = tokenizer.decode([7], skip_special_tokens=False)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 7)])
    tokenizer.save(str(copy / "tokenizer.json"))
    text = "a" * 30 + "bcdef"
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    for keep, kept in (("end", ids[-31:]), ("start", ids[:31])):
        cut, same = ask(serve(copy, handler__truncate=keep), {"prompt": text}, {"input_ids": [7, *kept]})
        assert cut == same


def test_logits_that_are_not_finite_fail_their_own_request_only(folder: Path) -> None:
    served = serve(folder)
    bad, good = {"input_ids": [3, 299, 4], "max_tokens": 9}, {"input_ids": prompt(1, 5), "max_tokens": 9}
    (before,) = ask(served, good)
    model = served.handler.model.model
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # no longer the embedding's
    with torch.no_grad():
        model.get_input_embeddings().weight[299] = float("nan")
    answers = served.ask(*((json.dumps(one).encode(), JSON) for one in (bad, good)))
    assert answers[0].status == 500
    assert "not finite" in answers[0].json["message"]
    assert answers[1].json == before
    (tensors,) = served.ask((json.dumps(bad).encode(), JSON), accept="application/x-safetensors")
    assert tensors.status == 500
    longer = {"input_ids": [1], "max_tokens": 9}
    assert ask(served, longer) == ask(serve(folder), longer)  # nothing of it is left in the cache


def test_settings_that_cannot_be_served(folder: Path) -> None:
    with pytest.raises(ConfigError, match="512 positions"):
        serve(folder, handler__max_new_tokens=481)
    with pytest.raises(ConfigError, match="compile"):
        serve(folder, batching__compile=True)
    with pytest.raises(ConfigError, match=r"handler\.truncate"):
        serve(folder, handler__truncate="yes")


def test_rotary_frequencies_stay_exact_in_half_precision(folder: Path) -> None:
    served = serve(folder, batching__dtype="bf16")
    decoder = served.handler.model
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in decoder.buffers()} == {torch.float32}
    (answer,) = ask(served, {"prompt": "hello"})
    assert answer["completion_tokens"] == 12


def test_a_sliding_window_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}
    config["layer_types"] = ["sliding_attention"] * 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="16 tokens"):
        serve(tmp_path)


def test_a_llama_is_served_as_well(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=[END, 299],
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    asked = [{"input_ids": prompt(row, 3 + row), "ignore_eos": True} for row in range(4)]
    for one, answer in zip(asked, ask(serve(tmp_path), *asked), strict=True):
        out = reference.generate(
            torch.tensor([one["input_ids"]]),
            attention_mask=torch.ones(1, len(one["input_ids"])),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=VOCABULARY + 1,
            pad_token_id=0,
        )
        assert answer["token_ids"] == out[0, len(one["input_ids"]) :].tolist()


def test_a_model_with_another_kind_of_state_is_refused(folder: Path, tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=1, num_attention_heads=1
    )
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError):
        load_decoder(tmp_path)
    with pytest.raises(ConfigError, match="text generator"):
        load_decoder(tmp_path / "nothing")


def test_a_wish_is_completed() -> None:
    wish = Sampling.read({"stop": "x", "stop_token_ids": [4]}).wish(5, 9, frozenset([1]))
    assert (wish.max_tokens, wish.stop, wish.stop_ids, wish.sampled) == (5, ("x",), {1, 4}, False)
    with pytest.raises(RequestError, match=r"top_p.*seed"):
        Sampling.read({"top_p": 2, "seed": "a"})

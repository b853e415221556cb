"""Text generation: a small causal language model (Qwen2, Llama and their like) with its fast tokenizer.

Serves text and token ids, greedy and sampled, mixed in one batch. See docs/reference/handlers.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
import transformers

from ts_mps.batching import LENGTH, BatchHandler, ConfigError, Input, Instances, Request, RequestError, Strict, numbers
from ts_mps.batching.decoder import load_decoder
from ts_mps.batching.following import BROKEN
from ts_mps.batching.generation import WISHES, GenerationRunner
from ts_mps.batching.respond import wants_tensors
from ts_mps.batching.sampling import Sampling, Wish
from ts_mps.batching.texts import cut_text, limit_texts

_REASONS = ("stop", "length")

#: What token ids come as: a JSON array, or a tensor's row.
_IDS = (list, np.ndarray)


class TextGenerator(BatchHandler):
    """Tokenises all prompts of a batch at once, and generates for all of them step by step."""

    class Options(Strict):
        """The section ``handler`` of model-config.yaml.

        Args:
            max_new_tokens: Most tokens that a request may ask for; the cache has room for so many after each prompt.
            default_max_tokens: ``max_tokens`` of a request that does not say; never more than max_new_tokens.
            truncate: What to do with a prompt that is too long: ``refuse`` it with 413, or keep its ``end`` or
                ``start``.
            stop_token_ids: Tokens that end an answer; null for those of the model's generation config.
            add_special_tokens: Whether the tokenizer adds what the model expects around a prompt.
            max_request_characters: Most characters of all prompts of one request; more is answered with 413.
        """

        max_new_tokens: Annotated[pydantic.StrictInt, pydantic.Field(gt=0)] = 256
        default_max_tokens: Annotated[pydantic.StrictInt, pydantic.Field(gt=0)] = 128
        truncate: Literal["refuse", "end", "start"] = "refuse"
        stop_token_ids: tuple[pydantic.StrictInt, ...] | None = None
        add_special_tokens: pydantic.StrictBool = True
        max_request_characters: Annotated[pydantic.StrictInt, pydantic.Field(gt=0)] = 262_144

    inputs = {"input_ids": Input("int64", (LENGTH,))}  # noqa: RUF012  # the base declares it so

    # -- loading ---------------------------------------------------------------------------------------------------

    def load(self, folder: Path) -> torch.nn.Module:
        """Load model and tokenizer from the archive; nothing is looked up on the network."""
        if self.batching.compile:
            raise ConfigError("batching.compile: this handler captures its graphs without torch.compile; set it false.")
        # Rust's threads would be as many as the machine has cores, in every worker.
        os.environ.setdefault("RAYON_NUM_THREADS", str(torch.get_num_threads()))
        decoder = load_decoder(folder)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"The archive's tokenizer cannot be loaded: {error}") from error
        if not tokenizer.is_fast:
            raise ConfigError("The archive has no fast tokenizer (tokenizer.json).")
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_padding()
        self._longest = max(self.batching.lengths)
        self._tokenizer.no_truncation()
        if self.options.truncate != "refuse":
            # Its own truncation leaves room for the special tokens, where cutting afterwards would lose the first one.
            self._tokenizer.enable_truncation(
                self._longest, direction="left" if self.options.truncate == "end" else "right"
            )
        self._vocabulary = decoder.vocabulary
        self._default = min(self.options.default_max_tokens, self.options.max_new_tokens)
        self._end_ids = self._ends(decoder.model, tokenizer)
        return decoder

    def _ends(self, model: Any, tokenizer: Any) -> frozenset[int]:
        """The tokens that end an answer, from wherever they are told."""
        if self.options.stop_token_ids is not None:
            return frozenset(self.options.stop_token_ids)
        told = (getattr(model, "generation_config", None), model.config, tokenizer)
        found = next((ids for one in told if (ids := getattr(one, "eos_token_id", None)) is not None), ())
        return frozenset([found] if isinstance(found, int) else found)

    def make_runner(self, grid: Any) -> GenerationRunner:
        """A runner of its own: a prefill and many steps make one run."""
        return GenerationRunner(
            self.model,
            grid,
            self.device,
            self.dtype,
            max_new_tokens=self.options.max_new_tokens,
            text_of=self._text_of,
            graphs=self.batching.cuda_graphs,
        )

    # -- requests --------------------------------------------------------------------------------------------------

    def decode(self, request: Request) -> Instances:
        """Prompts as text or token ids, each with what is wished of its answer."""
        given = self._given(request)
        read = [self._read(one, request.parameters) for one in given]
        limit_texts([prompt for prompt, _ in read], self.options.max_request_characters)
        return Instances({"prompt": [prompt for prompt, _ in read], "wish": [wish for _, wish in read]})

    def _given(self, request: Request) -> Sequence[Any]:
        tensors = request.tensors()
        if tensors is None:
            return request.instances()
        name = next((name for name in ("", "text", "prompt", "input_ids") if name in tensors), None)
        if name is None or len(tensors) > 1:
            raise RequestError(f"The body has tensors {sorted(tensors)}; one named text or input_ids is needed.")
        value = tensors[name]
        if isinstance(value, list):
            return value
        if value.ndim not in (1, 2):
            raise RequestError(f"input_ids: shape [n, tokens] is needed, got {list(value.shape)}.")
        return list(np.atleast_2d(value))

    def _read(self, one: Any, shared: Mapping[str, Any]) -> tuple[str | np.ndarray[Any, Any], Wish]:
        """One instance: its prompt, and its own parameters before the shared ones."""
        own = dict(one) if isinstance(one, dict) else {"input_ids" if isinstance(one, _IDS) else "prompt": one}
        if ("prompt" in own) == ("input_ids" in own):
            raise RequestError('An instance must be a text, {"prompt": ...} or {"input_ids": [...]}.')
        prompt, ids = own.pop("prompt", None), own.pop("input_ids", None)
        wish = Sampling.read({**shared, **own}).wish(self._default, self.options.max_new_tokens, self._end_ids)
        if ids is not None:
            array = numbers(ids, "int64", "input_ids")
            if array.ndim != 1:
                raise RequestError("input_ids: a flat list of token ids is needed.")
            return self._cut(self._known(array)), wish
        if isinstance(prompt, (bytes, bytearray)):
            try:
                prompt = prompt.decode("utf-8")
            except UnicodeDecodeError as error:
                raise RequestError("The prompt is not UTF-8.", 400) from error
        if not isinstance(prompt, str):
            raise RequestError("prompt: a text is needed.")
        if self.options.truncate == "refuse":
            return prompt, wish
        return cut_text(prompt, self._longest, end=self.options.truncate == "end"), wish

    def prepare(self, requests: list[Instances]) -> list[Instances]:
        """Tokenise the prompts of all requests in one call, which the tokenizer spreads over its threads."""
        texts = [one for part in requests for one in part.columns["prompt"] if isinstance(one, str)]
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=self.options.add_special_tokens)
        tokenised = (self._known(np.asarray(one.ids, np.int64)) for one in encoded)
        return [
            Instances(
                {
                    "input_ids": [next(tokenised) if isinstance(one, str) else one for one in part.columns["prompt"]],
                    "wish": part.columns["wish"],
                }
            )
            for part in requests
        ]

    def _known(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        # An id that the model does not know would end the whole process on a GPU.
        if ids.size and (ids.min() < 0 or ids.max() >= self._vocabulary):
            raise RequestError(f"input_ids: must be from 0 to {self._vocabulary - 1}.")
        return ids

    def _cut(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self.options.truncate == "refuse" or len(ids) <= self._longest:
            return ids
        return ids[-self._longest :] if self.options.truncate == "end" else ids[: self._longest]

    def collate(self, parts: Sequence[Instances], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Prompts at the right of their rows, as the runner wants them, and the wishes beside them."""
        token_ids, wishes = arrays["input_ids"], arrays[WISHES]
        token_ids.fill(0)
        row = 0
        for part in parts:
            for ids, wish in zip(part.columns["input_ids"], part.columns["wish"], strict=True):
                token_ids[row, token_ids.shape[1] - len(ids) :] = ids
                wishes[row] = wish
                row += 1

    # -- answers ---------------------------------------------------------------------------------------------------

    def encode(self, result: Mapping[str, Any], request: Request) -> dict[str, Any]:
        """Text and tokens without the prompt and without what ended them, and what they cost."""
        self._check(result["finish"])
        ids = result["token_ids"][: result["count"]]
        answer = {
            "text": self._answer_text(ids, int(result["characters"])),
            "token_ids": ids,
            "finish_reason": _REASONS[result["finish"]],
            "prompt_tokens": result["prompt_tokens"],
            "completion_tokens": result["count"],
        }
        return answer if result["seed"] < 0 else {**answer, "seed": result["seed"]}

    def outputs(self, results: Mapping[str, Any], request: Request) -> Mapping[str, Any]:
        """The same as tensors: ``token_ids`` padded with -1, ``seed`` -1 where nothing was drawn."""
        self._check(results["finish"])
        counts, characters = results["count"], results["characters"]
        numeric = {
            "token_ids": results["token_ids"][:, : max(1, int(counts.max()))],
            "prompt_tokens": results["prompt_tokens"],
            "completion_tokens": counts,
            "seed": results["seed"],
        }
        if wants_tensors(request) is not None:  # which cannot hold texts
            return {**numeric, "finish": results["finish"]}
        rows = range(len(counts))
        texts = [self._answer_text(results["token_ids"][row, : counts[row]], int(characters[row])) for row in rows]
        return {"text": texts, **numeric, "finish_reason": [_REASONS[reason] for reason in results["finish"]]}

    def _check(self, finish: Any) -> None:
        if np.any(finish == BROKEN):
            raise RequestError(f"The model's logits are not finite (it computes in {self.batching.dtype}).", 500)

    def _answer_text(self, ids: Any, characters: int) -> str:
        text = self._text_of(ids.tolist())
        return text if characters < 0 else text[:characters]

    def _text_of(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

"""Text classification and sentence embeddings: a transformers model folder with its fast tokenizer.

Serves text and token ids. See docs/reference/handlers.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers

from ts_mps.batching import (
    LENGTH,
    Batch,
    BatchHandler,
    ConfigError,
    Input,
    Instances,
    Request,
    RequestError,
    Strict,
    best_labels,
    numbers,
)
from ts_mps.batching.attention import padding, register
from ts_mps.batching.options import NotNegative, Positive
from ts_mps.batching.texts import cut_text, limit_texts

_NONE = np.empty(0, np.int64)


class TextClassifier(BatchHandler):
    """Tokenises all texts of a batch at once, pads to buckets, and builds a mask only where something is padded."""

    class Options(Strict):
        """The section ``handler`` of model-config.yaml.

        Args:
            task: ``classification``, or ``embedding``.
            top_k: How many labels to answer, the best first; 0 for all. One label is answered without a list.
            function: What makes scores of logits; ``auto``: sigmoid for a multi-label model, softmax for others.
            truncate: Cut what is too long; otherwise it is answered with 413.
            max_request_characters: Most characters of all texts of one request; more is answered with 413.
            pooling: How token vectors become one sentence vector: their ``mean``, or the first one (``cls``).
            normalize: Scale sentence vectors to length 1.
        """

        task: Literal["classification", "embedding"] = "classification"
        top_k: NotNegative = 1
        function: Literal["auto", "softmax", "sigmoid"] = "auto"
        truncate: bool = True
        max_request_characters: Positive = 262_144
        pooling: Literal["mean", "cls"] = "mean"
        normalize: bool = True

    def load(self, folder: Path) -> torch.nn.Module:
        """Load model and tokenizer from the archive; nothing is looked up on the network."""
        transformers.utils.logging.disable_progress_bar()
        # Rust's threads would be as many as the machine has cores, in every worker.
        os.environ.setdefault("RAYON_NUM_THREADS", str(torch.get_num_threads()))
        kind = {"classification": transformers.AutoModelForSequenceClassification, "embedding": transformers.AutoModel}
        try:
            model = kind[self.options.task].from_pretrained(
                folder, attn_implementation=register(), local_files_only=True, dtype=torch.float32
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"The archive's transformers model cannot be loaded: {error}") from error
        if not tokenizer.is_fast:
            raise ConfigError("The archive has no fast tokenizer (tokenizer.json).")
        config = model.config
        positions = getattr(config, "max_position_embeddings", max(self.batching.lengths))
        self._longest = min(max(self.batching.lengths), positions)
        if max(self.batching.lengths) > positions:
            raise ConfigError(f"batching.lengths: the model has {positions} positions at most.")
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if self.options.truncate:
            self._tokenizer.enable_truncation(self._longest)
        self._vocabulary = config.vocab_size
        self._labels = config.id2label
        sigmoid = self.options.function == "sigmoid" or (
            self.options.function == "auto" and config.problem_type == "multi_label_classification"
        )
        self._scores = torch.sigmoid if sigmoid else lambda logits: torch.softmax(logits, -1)
        pad = tokenizer.pad_token_id or 0
        self.inputs = {"input_ids": Input("int64", (LENGTH,), pad=pad)}
        self._pairs = "token_type_ids" in tokenizer.model_input_names and getattr(config, "type_vocab_size", 0) > 1
        if self._pairs:
            self.inputs["token_type_ids"] = Input("int64", (LENGTH,))
        return model

    def decode(self, request: Request) -> Instances:
        """Texts, or token ids as JSON, .npy, safetensors or KServe v2."""
        tensors = request.tensors()
        if tensors is not None:
            name = next((name for name in ("", "input_ids", "text") if name in tensors), None)
            if name is None:
                raise RequestError(f"The body has tensors {sorted(tensors)}; text or input_ids is needed.")
            value = tensors[name]
            given = value if isinstance(value, list) else [row for row in np.atleast_2d(value)]
        else:
            given = request.instances()
        read = [self._read(one) for one in given]
        limit_texts(read, self.options.max_request_characters)
        return Instances({"given": read})

    def _read(self, one: Any) -> Any:
        """One instance: token ids as an array, a text, or a pair of texts."""
        if isinstance(one, dict):
            if "input_ids" in one:
                one = one["input_ids"]
                if not isinstance(one, list):
                    raise RequestError("input_ids: must be a list of token ids.")
            elif "text_pair" in one:
                if not (isinstance(one["text_pair"], str) and isinstance(one.get("text"), str)):
                    raise RequestError("text and text_pair must be texts.")
                return self._start(one["text"]), self._start(one["text_pair"])
            else:
                one = one.get("text", one.get("inputs"))
        if isinstance(one, (bytes, bytearray)):
            try:
                one = one.decode("utf-8")
            except UnicodeDecodeError as error:
                raise RequestError("The text is not UTF-8.", 400) from error
        if isinstance(one, str):
            return self._start(one)
        ids = numbers(one, "int64", "input_ids") if isinstance(one, (list, np.ndarray)) else None
        if ids is None or ids.ndim != 1:
            raise RequestError('An instance must be a text, {"text": ...} or {"input_ids": [...]}.')
        if self.options.truncate:
            ids = ids[: self._longest]
        if ids.size and (ids.min() < 0 or ids.max() >= self._vocabulary):
            raise RequestError(f"input_ids: must be from 0 to {self._vocabulary - 1}.")
        return ids

    def _start(self, text: str) -> str:
        return cut_text(text, self._longest) if self.options.truncate else text

    def prepare(self, requests: list[Instances]) -> list[Instances]:
        """Tokenise the texts of all requests in one call, which the tokenizer spreads over its threads."""
        texts = [one for part in requests for one in part.columns["given"] if not isinstance(one, np.ndarray)]
        tokenised = iter(self._tokenizer.encode_batch_fast(texts) if texts else ())
        return [Instances(self._columns(part.columns["given"], tokenised)) for part in requests]

    def _columns(self, given: Any, tokenised: Any) -> dict[str, list[Any]]:
        ids, types = [], []
        for one in given:
            if isinstance(one, np.ndarray):
                ids.append(one)
                types.append(_NONE)
            else:
                encoding = next(tokenised)
                ids.append(np.asarray(encoding.ids, np.int64))
                types.append(np.asarray(encoding.type_ids, np.int64) if isinstance(one, tuple) else _NONE)
        return {"input_ids": ids, "token_type_ids": types} if self._pairs else {"input_ids": ids}

    def run(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Scores [rows, labels] or sentence vectors [rows, size], in float32."""
        mask = batch.mask
        arguments = {"token_type_ids": batch["token_type_ids"]} if self._pairs else {}
        with padding(mask):
            out = self.model(input_ids=batch["input_ids"], **arguments)
        if self.options.task == "classification":
            return {"scores": self._scores(out.logits.float())}
        hidden = out.last_hidden_state.float()
        if self.options.pooling == "cls":
            vector = hidden[:, 0]
        elif mask is None:
            vector = hidden.mean(1)
        else:
            vector = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return {"embedding": torch.nn.functional.normalize(vector) if self.options.normalize else vector}

    def encode(self, result: Mapping[str, Any], request: Request) -> Any:
        """The best labels with their scores, or the vector."""
        if self.options.task == "embedding":
            return {"embedding": result["embedding"]}
        return best_labels(result["scores"], self._labels, self.options.top_k)

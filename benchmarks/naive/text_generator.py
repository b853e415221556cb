"""Text generation as TorchServe's examples do it: one padded batch through ``model.generate``.

See examples/large_models of pytorch/serve.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers


class NaiveTextGenerator:
    """All requests of a batch are generated together, each for as many tokens as the longest wants."""

    def initialize(self, context: Any) -> None:
        """Load the transformers model at the archive's root."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        on_gpu = torch.cuda.is_available() and gpu is not None
        self.device = torch.device(f"cuda:{gpu}" if on_gpu else "cpu")
        # The same key that our handlers read, so that both sides compute in the same dtype.
        wanted = ((context.model_yaml_config or {}).get("batching") or {}).get("dtype", "fp32")
        dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
        dtype = dtypes.get(wanted, torch.float32) if on_gpu else torch.float32
        model = transformers.AutoModelForCausalLM.from_pretrained(properties["model_dir"], dtype=dtype)
        self.model = model.to(self.device).eval()
        pad = self.model.config.pad_token_id
        self.pad = 0 if pad is None else pad

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Answer a batch: {"token_ids": [...]} for each {"input_ids": [...], "max_tokens": int}."""
        requests = [_parsed(row.get("data") or row.get("body")) for row in data]
        longest = max(len(request["input_ids"]) for request in requests)
        batch_ids, batch_mask = [], []
        for request in requests:
            ids = torch.tensor([request["input_ids"]])
            padded = torch.full((1, longest), self.pad)
            mask = torch.zeros((1, longest), dtype=torch.int64)
            padded[:, longest - ids.shape[1] :] = ids
            mask[:, longest - ids.shape[1] :] = 1
            batch_ids.append(padded.to(self.device))
            batch_mask.append(mask.to(self.device))
        tokens = max(int(request["max_tokens"]) for request in requests)
        with torch.inference_mode():
            generated = self.model.generate(
                torch.cat(batch_ids),
                attention_mask=torch.cat(batch_mask),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=self.pad,
            )
        rows = generated[:, longest:].tolist()
        return [{"token_ids": row[: int(request["max_tokens"])]} for row, request in zip(rows, requests, strict=True)]


def _parsed(body: Any) -> dict[str, Any]:
    document: dict[str, Any] = body if isinstance(body, dict) else json.loads(body)
    return document

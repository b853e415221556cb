"""Text classification as TorchServe's examples do it: one request at a time up to one eager forward of the batch.

See examples/Huggingface_Transformers of pytorch/serve.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
import transformers

#: Tokens to which every text is padded or cut.
_MAX_LENGTH = 128


class NaiveTextClassifier:
    """Each request is decoded, padded and copied to the device on its own; then the rows are concatenated."""

    def initialize(self, context: Any) -> None:
        """Load model and tokenizer from the archive's root."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        on_gpu = torch.cuda.is_available() and gpu is not None
        self.device = torch.device(f"cuda:{gpu}" if on_gpu else "cpu")
        # The same key that our handlers read, so that both sides compute in the same dtype.
        wanted = ((context.model_yaml_config or {}).get("batching") or {}).get("dtype", "fp32")
        dtype = torch.float16 if on_gpu and wanted == "fp16" else torch.float32
        folder = properties["model_dir"]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
        self.model = model.to(self.device).eval()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Answer a batch: {"label": int, "score": float} for each text or row of token ids."""
        batch_ids: torch.Tensor | None = None
        batch_mask: torch.Tensor | None = None
        for row in data:
            ids, mask = self._encoded(row.get("data") or row.get("body"))
            ids, mask = ids.to(self.device), mask.to(self.device)
            batch_ids = ids if batch_ids is None else torch.cat((batch_ids, ids), 0)
            batch_mask = mask if batch_mask is None else torch.cat((batch_mask, mask), 0)
        with torch.inference_mode():
            probabilities = torch.softmax(self.model(batch_ids, attention_mask=batch_mask).logits.float(), 1)
        # Row by row, as Huggingface_Transformers/Transformer_handler_generalized.py takes its labels.
        labels = [probabilities[row].unsqueeze(0).argmax(1).item() for row in range(len(data))]
        scores = probabilities.max(1).values.tolist()
        return [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True)]

    def _encoded(self, body: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask [1, length] of a text, or of an .npy file of ids [length]."""
        if isinstance(body, (bytes, bytearray)) and body[:6] == b"\x93NUMPY":
            ids = torch.from_numpy(np.load(io.BytesIO(body))).unsqueeze(0)
            return ids, torch.ones_like(ids)
        text = body if isinstance(body, str) else bytes(body).decode("utf-8")
        encoded = self.tokenizer(
            text, padding="max_length", truncation=True, max_length=_MAX_LENGTH, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]

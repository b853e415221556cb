"""Image classification as TorchServe's image_classifier does it: torchvision one by one, then one eager forward."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torchvision import transforms


class NaiveImageClassifier:
    """Decodes, resizes and normalises one image after the other on the CPU."""

    def initialize(self, context: Any) -> None:
        """Load the transformers model at the archive's root."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        on_gpu = torch.cuda.is_available() and gpu is not None
        self.device = torch.device(f"cuda:{gpu}" if on_gpu else "cpu")
        # The same key that our handlers read, so that both sides compute in the same dtype.
        wanted = ((context.model_yaml_config or {}).get("batching") or {}).get("dtype", "fp32")
        self.dtype = torch.float16 if on_gpu and wanted == "fp16" else torch.float32
        folder = Path(properties["model_dir"])
        model = transformers.AutoModelForImageClassification.from_pretrained(folder, dtype=self.dtype)
        self.model = model.to(self.device).eval()
        # 256 and 224 with ImageNet's mean and deviation, but for models that were made for other sizes.
        saved = json.loads((folder / "preprocessor_config.json").read_text())
        self.image_processing = transforms.Compose(
            [
                transforms.Resize(saved["size"]["shortest_edge"]),
                transforms.CenterCrop(saved["crop_size"]["height"]),
                transforms.ToTensor(),
                transforms.Normalize(mean=saved["image_mean"], std=saved["image_std"]),
            ]
        )

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Answer a batch: {"label": int, "score": float} for each image file."""
        images = []
        for row in data:
            image = Image.open(io.BytesIO(row.get("data") or row.get("body"))).convert("RGB")
            images.append(self.image_processing(image))
        batch = torch.stack(images).to(self.device, self.dtype)
        with torch.inference_mode():
            best = torch.softmax(self.model(batch).logits.float(), 1).max(1)
        labels, scores = best.indices.tolist(), best.values.tolist()
        return [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True)]

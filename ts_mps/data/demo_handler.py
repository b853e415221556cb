"""The demo's TorchServe handler: image files in, digits out.

It runs inside the archive, beside demo_model.py and without ts_mps. It does not import TorchServe's BaseHandler, which
would touch CUDA before the worker has its GPU.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_model import DigitsNet  # type: ignore[import-not-found]  # lies beside it in the archive
from PIL import Image

_SIDE = 8


class DigitsHandler:
    """Decodes each request on its own, runs the good ones as one batch."""

    def initialize(self, context: Any) -> None:
        """Load the weights onto the GPU that TorchServe gave this worker, or onto the CPU if it gave none."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        self.device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        weights = Path(properties["model_dir"]) / context.manifest["model"]["serializedFile"]
        self.model = DigitsNet()
        self.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.model.to(self.device).eval()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Answer a batch.

        Args:
            data: One entry per request with the image file under "body" or "data".
            context: TorchServe's context.

        Returns:
            One entry per request: {"digit": 0-9, "probability": 0.0-1.0}; {"error": ...} with status 422 for one
            that is no image.
        """
        answers: list[dict[str, Any]] = [{"error": "The request is not an image file."} for _ in data]
        images, places = [], []
        for place, request in enumerate(data):
            try:
                images.append(_decode(request.get("body") or request.get("data")))
                places.append(place)
            except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError):
                context.set_response_status(code=422, phrase="Unprocessable Entity", idx=place)
        if images:
            batch = torch.from_numpy(np.stack(images)).to(self.device)
            with torch.inference_mode():
                best = self.model(batch).softmax(dim=1).max(dim=1)
            results = zip(places, best.indices.tolist(), best.values.tolist(), strict=True)
            for place, digit, probability in results:
                answers[place] = {"digit": digit, "probability": round(probability, 4)}
        return answers


def _decode(body: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One image file as float32 [1, 8, 8] in [0, 1], white on black."""
    with Image.open(io.BytesIO(body)) as image:
        grey = image.convert("L")
        if grey.size != (_SIDE, _SIDE):
            grey = grey.resize((_SIDE, _SIDE))
        pixels = np.array(grey, dtype=np.float32)[None]
        pixels /= 255
        return pixels

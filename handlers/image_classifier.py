"""Image classification: JPEG or PNG files in, labels out. Decoding is spread over the worker's cores.

See docs/reference/handlers.md.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from ts_mps.batching import (
    Batch,
    BatchHandler,
    ConfigError,
    Input,
    Instances,
    Request,
    RequestError,
    Strict,
    best_labels,
)
from ts_mps.batching.options import NotNegative, Positive

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SAVED_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
_UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, Image.DecompressionBombError)


class ImageClassifier(BatchHandler):
    """Decodes and crops on the host, normalises on the device."""

    parallel_decode = True

    class Options(Strict):
        """The section ``handler`` of model-config.yaml. What is null is taken from preprocessor_config.json.

        Args:
            top_k: How many labels to answer, the best first; 0 for all. One label is answered without a list.
            labels: A JSON file in the archive with a list of labels, for models without a transformers config.
            max_bytes: The largest file that is decoded; larger ones are answered with 413.
            max_pixels: The most pixels that are decoded, known from the header before; more is answered with 413.
            max_request_pixels: The same for all images of one request together.
            resize: The length in pixels of the shorter edge before the crop.
            crop: The side in pixels of the square that the model sees.
            mean: Of red, green and blue, 0 to 1.
            std: Of red, green and blue.
            resampling: ``bilinear`` or ``bicubic``.
        """

        top_k: NotNegative = 1
        labels: str | None = None
        max_bytes: Positive = 6_553_500
        max_pixels: Positive = 40_000_000
        max_request_pixels: Positive = 160_000_000
        resize: Positive | None = None
        crop: Positive | None = None
        mean: tuple[float, float, float] | None = None
        std: tuple[float, float, float] | None = None
        resampling: Literal["bilinear", "bicubic"] | None = None

    def load(self, folder: Path) -> torch.nn.Module:
        """Load a transformers model folder, an exported program or TorchScript."""
        self._preprocessing(folder)
        if (folder / "config.json").is_file():
            import transformers

            transformers.utils.logging.disable_progress_bar()
            try:
                model = transformers.AutoModelForImageClassification.from_pretrained(
                    folder, local_files_only=True, dtype=torch.float32
                )
            except (OSError, ValueError) as error:
                raise ConfigError(f"The archive's transformers model cannot be loaded: {error}") from error
            self._labels: Mapping[int, str] = model.config.id2label
        else:
            model = super().load(folder)
            names = json.loads((folder / self.options.labels).read_text()) if self.options.labels else []
            self._labels = dict(enumerate(map(str, names)))
        for name, values in (("mean", self._mean), ("std", self._std)):
            model.register_buffer(f"ts_mps_{name}", torch.tensor(values).view(1, 3, 1, 1) * 255, persistent=False)
        # Convolutions on tensor cores want the channels last, and that is how images are decoded.
        return model.to(memory_format=torch.channels_last)

    def _preprocessing(self, folder: Path) -> None:
        """Sizes and colours, from the options or as transformers' processor of the model has them.

        Raises:
            ConfigError: The processor does something that is not done here.
        """
        options, file = self.options, folder / "preprocessor_config.json"
        saved = json.loads(file.read_text()) if file.is_file() else {}
        saved = {key: value for key, value in saved.items() if value is not None}
        for key, wanted in (("do_resize", True), ("do_rescale", True), ("do_normalize", True), ("do_pad", False)):
            if saved.get(key, wanted) is not wanted:
                raise ConfigError(f"preprocessor_config.json: {key} {saved[key]} is not served here.")
        if abs(saved.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise ConfigError(f"preprocessor_config.json: rescale_factor {saved['rescale_factor']} is not served here.")
        size = _side(saved, "size", 224)
        # Height and width without a crop: the image is squeezed into the square, whatever its shape.
        exact = isinstance(saved.get("size"), dict) and "height" in saved["size"]
        self._squeeze = exact and not saved.get("do_center_crop") and not (options.resize or options.crop)
        crop = _side(saved, "crop_size", size) if saved.get("do_center_crop", True) else size
        if "crop_pct" in saved and size < 384:
            # ConvNeXt's: the size is the crop's, and the image is resized so that the crop is this part of it.
            crop, size = size, int(size / saved["crop_pct"])
        self._crop = options.crop or crop
        self._resize = options.resize or size
        self._mean = options.mean or tuple(saved.get("image_mean", (0.485, 0.456, 0.406)))
        self._std = options.std or tuple(saved.get("image_std", (0.229, 0.224, 0.225)))
        named = options.resampling or _SAVED_RESAMPLING.get(saved.get("resample", 2))
        if named is None:
            raise ConfigError(f"preprocessor_config.json: resample {saved['resample']} is not served here.")
        self._resampling = _RESAMPLING[named]
        if self._resize < self._crop:
            raise ConfigError(f"handler.resize ({self._resize}) must not be less than the crop ({self._crop}).")
        self.inputs = {"pixels": Input("uint8", (self._crop, self._crop, 3))}

    def decode(self, request: Request) -> Instances:
        """Files as a body or as parts of a form; in JSON and KServe v2 base64 texts, alone or as ``{"b64": ...}``."""
        tensors = request.tensors()
        given = request.instances() if tensors is None else next(iter(tensors.values()))
        if not isinstance(given, list) or len(tensors or "1") != 1:
            raise RequestError("Tensors are not served here; send files, or base64 as one input of BYTES.", 415)
        left, images = self.options.max_request_pixels, []
        for one in given:
            image, count = self._pixels(self._file(one), left)
            images.append(image)
            left -= count
        return Instances({"pixels": np.stack(images) if images else np.empty((0, self._crop, self._crop, 3), np.uint8)})

    def _file(self, one: Any) -> bytes | bytearray:
        if isinstance(one, dict):
            one = one.get("b64")
        if isinstance(one, str):
            try:
                one = base64.b64decode(one, validate=True)
            except (binascii.Error, ValueError) as error:
                raise RequestError("An image in JSON must be base64.", 400) from error
        if not isinstance(one, (bytes, bytearray)):
            raise RequestError("An image must be the bytes of a JPEG or PNG file.")
        if len(one) > self.options.max_bytes:
            raise RequestError(f"An image has {len(one)} bytes; at most {self.options.max_bytes} are decoded.", 413)
        return one

    def _pixels(self, file: bytes | bytearray, left: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int]:
        """One image as uint8 [crop, crop, 3], and how many pixels it has, of the ``left`` that its request may have."""
        try:
            with Image.open(io.BytesIO(file), formats=("JPEG", "PNG")) as image:
                width, height = image.size
                if width * height > self.options.max_pixels:
                    most = self.options.max_pixels
                    raise RequestError(f"An image has {width} x {height} pixels; at most {most} are decoded.", 413)
                if width * height > left:
                    most = self.options.max_request_pixels
                    raise RequestError(f"The images of the request have more than {most} pixels together.", 413)
                scale = self._resize / min(width, height)
                # Lets libjpeg decode a large photo at a half, quarter or eighth, still twice as large as is needed.
                image.draft("RGB", (int(2 * width * scale), int(2 * height * scale)))
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith("I"):  # 16 bits of grey; convert() would clip them to white
                    upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
                upright = upright.convert("RGB")
                return self._cropped(upright), width * height
        except _UNREADABLE as error:
            raise RequestError("The request is not a JPEG or PNG image that can be decoded.") from error

    def _cropped(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if self._squeeze:
            return np.asarray(image.resize((self._crop, self._crop), self._resampling))
        width, height = image.size
        scale = self._resize / min(width, height)
        width, height = max(self._resize, int(width * scale)), max(self._resize, int(height * scale))
        if max(width, height) > 100 * self._resize:
            raise RequestError("The image is more than a hundred times as long as it is wide.")
        left, top = (width - self._crop) // 2, (height - self._crop) // 2
        # Resizes only what the crop keeps.
        across, down = image.size[0] / width, image.size[1] / height
        box = (left * across, top * down, (left + self._crop) * across, (top + self._crop) * down)
        return np.asarray(image.resize((self._crop, self._crop), self._resampling, box=box))

    def run(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Scores [rows, labels]."""
        pixels = batch["pixels"].permute(0, 3, 1, 2).to(self.dtype)
        out = self.model((pixels - self.model.ts_mps_mean) / self.model.ts_mps_std)
        logits = getattr(out, "logits", out)
        return {"scores": torch.softmax(logits.float(), -1)}

    def encode(self, result: Mapping[str, Any], request: Request) -> Any:
        """The best labels with their scores."""
        return best_labels(result["scores"], self._labels, self.options.top_k)


def _side(saved: Mapping[str, Any], key: str, default: int) -> int:
    """The side of a square in a processor's config: a number, or an edge or height of its own."""
    size = saved.get(key, default)
    if isinstance(size, dict):
        size = size.get("shortest_edge") or (size.get("height") if size.get("height") == size.get("width") else None)
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"preprocessor_config.json: {key} {saved.get(key)} is not served here.")
    return size

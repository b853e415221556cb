"""The demo's data and training: scikit-learn's bundled handwritten digits (1797 real images of 8x8 pixels)."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ts_mps.errors import TsMpsError

#: Called with what is being done and how much of it is done (0.0 to 1.0).
Progress = Callable[[str, float], None]

_SEED = 0
_HELD_OUT = 0.2
_EPOCHS = 20
_BATCH = 64


@dataclass(frozen=True)
class Digits:
    """The images, split once and for all.

    Args:
        train_images: uint8 [N, 8, 8], white on black.
        train_labels: int64 [N].
        images: The held-out images as PNG files.
        labels: Their digits.
    """

    train_images: np.ndarray[Any, np.dtype[np.uint8]]
    train_labels: np.ndarray[Any, np.dtype[np.int64]]
    images: tuple[bytes, ...]
    labels: tuple[int, ...]


def load_digits() -> Digits:
    """Load and split the data; always the same split, with each digit held out in proportion.

    Raises:
        TsMpsError: scikit-learn or Pillow is not installed.
    """
    try:
        from PIL import Image
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise TsMpsError(
            f"The demo needs scikit-learn and Pillow ({error}).", "Run: pip install 'ts-mps[demo]'"
        ) from error
    digits = datasets.load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # its pixels go from 0 to 16
    labels = digits.target.astype(np.int64)
    train, held_out = train_test_split(np.arange(len(grey)), test_size=_HELD_OUT, random_state=_SEED, stratify=labels)

    def png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return Digits(
        grey[train], labels[train], tuple(png(grey[index]) for index in held_out), tuple(labels[held_out].tolist())
    )


def train(digits: Digits, weights: Path, progress: Progress) -> None:
    """Train the model on the CPU (this process must not become a client of a GPU) and save its state_dict.

    Args:
        digits: The data.
        weights: File to write.
        progress: Called after each epoch.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from ts_mps.data.demo_model import DigitsNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = DigitsNet()
        images = torch.from_numpy(digits.train_images).float().unsqueeze(1) / 255
        labels = torch.from_numpy(digits.train_labels)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for epoch in range(_EPOCHS):
            for batch in torch.randperm(len(images)).split(_BATCH):
                optimizer.zero_grad()
                cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
            progress("training", (epoch + 1) / _EPOCHS)
    torch.save(model.state_dict(), weights)

"""Bodies of requests, made from a fixed seed and from what the model folder says about its model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Different bodies of each kind; the connections take them in turn.
_BODIES = 64
_PHOTOS = 8
_SEED = 7
_TOKENS = 128
_CANDIDATES = 2_000
_DENSE, _SPARSE = 13, 26
_WORDS = 126  # two more tokens mark begin and end
_PHOTO = (375, 500)
_PROMPT = 64
#: Tokens that a prompt is continued by.
GENERATED = 32

_Random = np.random.Generator


def make(kind: str, folder: Path, **sizes: int) -> tuple[list[bytes], str]:
    """Bodies and their content type.

    Args:
        kind: ``ids``, ``texts``, ``candidates``, ``photos`` or ``prompts``.
        folder: The model's folder.
        **sizes: What the kind takes in place of its own numbers: ``tokens`` and ``generated`` of ``prompts``.
    """
    makers: dict[str, tuple[Callable[..., list[bytes]], str]] = {
        "ids": (_ids, "application/x-npy"),
        "texts": (_texts, "text/plain; charset=utf-8"),
        "candidates": (_candidates, "application/x-npy"),
        "photos": (_photos, "image/jpeg"),
        "prompts": (_prompts, "application/json"),
    }
    maker, content_type = makers[kind]
    return maker(folder, np.random.default_rng(_SEED), **sizes), content_type


def _ids(folder: Path, random: _Random) -> list[bytes]:
    """Rows of int64 token ids [128] as .npy."""
    vocabulary = _json(folder / "config.json")["vocab_size"]
    return [_npy(random.integers(0, vocabulary, _TOKENS, dtype=np.int64)) for _ in range(_BODIES)]


def _texts(folder: Path, random: _Random) -> list[bytes]:
    """Texts of 126 words that the tokenizer knows, one token each; so 128 tokens."""
    vocabulary = _json(folder / "tokenizer.json")["model"]["vocab"]
    words = sorted(word for word in vocabulary if len(word) > 1 and word.isascii() and word.isalpha())
    return [" ".join(random.choice(words, _WORDS)).encode() for _ in range(_BODIES)]


def _candidates(folder: Path, random: _Random) -> list[bytes]:
    """Candidates as float32 .npy [2000, 39]: 13 dense features, then 26 ids."""
    sizes = _json(folder / "dlrm.json")["table_sizes"]
    rows = []
    for _ in range(_BODIES):
        dense = random.random((_CANDIDATES, _DENSE), dtype=np.float32)
        sparse = random.integers(0, sizes, (_CANDIDATES, _SPARSE)).astype(np.float32)
        rows.append(_npy(np.concatenate([dense, sparse], 1)))
    return rows


def _photos(folder: Path, random: _Random) -> list[bytes]:
    """JPEG files with as much detail as photos have: gradients, blobs of every size, and a sensor's noise."""
    from PIL import Image

    height, width = _PHOTO
    files = []
    for _ in range(_PHOTOS):
        slope = np.linspace(0, 1, width)[None, :, None] * random.normal(0, 60, 3)
        pixels = 128 + slope + np.linspace(0, 1, height)[:, None, None] * random.normal(0, 60, 3)
        for cells, strength in ((4, 45), (12, 30), (40, 18), (120, 9)):
            coarse = random.normal(0, 1, (cells * 3 // 4, cells, 3))
            scaled = np.clip(128 + 48 * coarse, 0, 255).astype(np.uint8)
            smooth = Image.fromarray(scaled).resize((width, height), Image.Resampling.BICUBIC)
            pixels = pixels + (np.asarray(smooth, dtype=np.float64) - 128) / 48 * strength
        pixels += random.normal(0, 4, pixels.shape)
        file = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def _prompts(folder: Path, random: _Random, tokens: int = _PROMPT, generated: int = GENERATED) -> list[bytes]:
    """JSON with so many token ids that are to be continued by so many."""
    vocabulary = _json(folder / "config.json")["vocab_size"]
    return [
        json.dumps({"input_ids": random.integers(0, vocabulary - 1, tokens).tolist(), "max_tokens": generated}).encode()
        for _ in range(_BODIES)
    ]


def _npy(values: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def _json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document

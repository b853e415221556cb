"""Build image_classifier.mar: ``python handlers/build/image_classifier.py [--model FOLDER]``.

FOLDER is what transformers' ``save_pretrained`` wrote for an image classification model and its processor; or it holds
an exported ``model.pt2`` or TorchScript as ``model.pt``, called with [n, 3, height, width].
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from archive import main


def tiny(folder: Path) -> None:
    """A ResNet with 2 stages for images of 32 x 32 pixels."""
    _resnet(folder, 32, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10)


def resnet18(folder: Path) -> None:
    """The architecture of ResNet-18 for 224 x 224 pixels and 1,000 labels with random weights, to measure with."""
    _resnet(folder, 224, embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], num_labels=1000)


def _resnet(folder: Path, side: int, **size: object) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    ResNetForImageClassification(ResNetConfig(layer_type="basic", **size)).save_pretrained(folder)
    processor = {
        "size": {"shortest_edge": round(side * 256 / 224)},
        "crop_size": {"height": side, "width": side},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


if __name__ == "__main__":
    main("image_classifier", {"tiny": tiny, "resnet-18": resnet18})

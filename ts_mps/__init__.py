"""ts-mps: TorchServe workers as proven clients of NVIDIA's Multi-Process Service."""

from __future__ import annotations

__version__ = "0.1.0"

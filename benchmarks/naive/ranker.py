"""Ranking as TorchServe's examples do it: one request at a time up to one eager forward of all candidates.

See examples/torchrec_dlrm of pytorch/serve.
"""

from __future__ import annotations

import importlib.util
import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

_DENSE = 13


class NaiveRanker:
    """Each request is decoded and copied to the device on its own; then the candidates are concatenated."""

    def initialize(self, context: Any) -> None:
        """Make the archive's model and load its weights."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        on_gpu = torch.cuda.is_available() and gpu is not None
        self.device = torch.device(f"cuda:{gpu}" if on_gpu else "cpu")
        # The same key that our handlers read, so that both sides compute in the same dtype.
        wanted = ((context.model_yaml_config or {}).get("batching") or {}).get("dtype", "fp32")
        if wanted == "tf32":
            torch.set_float32_matmul_precision("high")
        self.dtype = torch.float16 if on_gpu and wanted == "fp16" else torch.float32
        folder, manifest = Path(properties["model_dir"]), context.manifest["model"]
        model = _made(folder / manifest["modelFile"])
        model.load_state_dict(load_file(folder / manifest["serializedFile"]))
        self.model = model.to(self.device, self.dtype).eval()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Answer a batch: {"scores": [...]} for each .npy file [candidates, 13 dense and 26 sparse features]."""
        dense, sparse = [], []
        for row in data:
            features = torch.from_numpy(np.load(io.BytesIO(row.get("data") or row.get("body"))))
            dense.append(features[:, :_DENSE].to(self.device, self.dtype))
            sparse.append(features[:, _DENSE:].long().to(self.device))
        with torch.inference_mode():
            scores = torch.sigmoid(self.model(torch.cat(dense), torch.cat(sparse)).float())
        return [{"scores": part.tolist()} for part in torch.split(scores, [len(one) for one in dense])]


def _made(path: Path) -> torch.nn.Module:
    """The model of the archive's model file: its one class that can be made without arguments."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, torch.nn.Module) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ValueError(f"{path.name} must define one model, it has {len(found)}")
    model: torch.nn.Module = found[0]()
    return model

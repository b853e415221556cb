"""Build ranker.mar: ``python handlers/build/ranker.py [--model FOLDER]``.

FOLDER holds ``model.py`` (one torch.nn.Module that is made without arguments and called with dense [n, 13] and sparse
[n, 26]) and its state_dict as ``model.safetensors`` or ``model.pt``; or an exported ``model.pt2``; or TorchScript as
``model.pt``. Other files in it are archived beside them.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import torch
from archive import main


def tiny(folder: Path) -> None:
    """A DLRM with tables of 100 rows of 8."""
    _dlrm(folder, {"table_sizes": [100] * 26, "embedding": 8, "dense": 13, "bottom": [32], "top": [32]})


def dlrm(folder: Path) -> None:
    """A DLRM with tables of 20,000 rows of 64 and random weights, to measure with."""
    _dlrm(
        folder,
        {"table_sizes": [20_000] * 26, "embedding": 64, "dense": 13, "bottom": [512, 256], "top": [512, 512, 256]},
    )


def _dlrm(folder: Path, sizes: dict[str, object]) -> None:
    from safetensors.torch import save_file

    shutil.copy(Path(__file__).with_name("dlrm.py"), folder / "model.py")
    (folder / "dlrm.json").write_text(json.dumps(sizes))
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    save_file(module.DLRM().state_dict(), folder / "model.safetensors")


if __name__ == "__main__":
    main("ranker", {"tiny": tiny, "dlrm": dlrm})

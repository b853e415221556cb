"""Which device the worker has, whether it can still be used, and leaving when it cannot."""

from __future__ import annotations

import logging
import os
import threading
import time

import torch

from ts_mps.batching.errors import ConfigError

_log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

#: How long a worker without its GPU waits for another batch to end with.
_LINGERING_S = 0.5

#: What a worker exits with after it lost its GPU.
EXIT_DEVICE_LOST = 70


def choose_device(gpu_id: int | str | None) -> torch.device:
    """The device that TorchServe gave this worker.

    Raises:
        ConfigError: TorchServe gave it a GPU, and this torch cannot use one.
    """
    if gpu_id is None:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"TorchServe gave this worker GPU {gpu_id}, and torch {torch.__version__} cannot use CUDA.")
    device = torch.device("cuda", int(gpu_id))
    torch.cuda.set_device(device)
    return device


def choose_dtype(name: str) -> torch.dtype:
    """The dtype of the weights for an option ``dtype``; sets the precision of float32 products for this process."""
    tf32 = name == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    return _DTYPES[name]


def survives(device: torch.device) -> bool:
    """Whether the device still computes: after a sticky CUDA error every call fails until the process ends."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        return bool((torch.ones(1, device=device) + 1).item() == 2)
    except torch.cuda.OutOfMemoryError:
        return True
    except RuntimeError:
        return False


def leave() -> None:
    """End this process at once. A normal exit runs CUDA's own clean-up, which can hang on a dead context."""
    os._exit(EXIT_DEVICE_LOST)


def leave_after_answering() -> threading.Thread:
    """End this process when no other batch comes for a moment; whoever gets one before calls :func:`leave`.

    TorchServe 0.12.0 answers the requests of a batch whose worker dies, but it loses those that it is just gathering
    for a worker, and their clients wait for ever. So where requests come one after another a worker does best to die
    with a batch in its hands. It must not wait for long: a dead context keeps an MPS server in its fault state while
    it exists.
    """

    def wait() -> None:
        time.sleep(_LINGERING_S)
        leave()

    _log.error("This worker cannot use its GPU any more and leaves; TorchServe starts another one.")
    thread = threading.Thread(target=wait, name="leave", daemon=True)
    thread.start()
    return thread

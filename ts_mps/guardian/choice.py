"""Whether MPS is used, on which GPUs, through whose daemons, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ts_mps.errors import MpsError
from ts_mps.gpu.inventory import Gpu, Inventory
from ts_mps.gpu.visible import select_gpus
from ts_mps.mps.control import Control, binary_version, find_binary
from ts_mps.torchserve.models import ModelRequest
from ts_mps.torchserve.server_config import ServerConfig

#: How the sentence of a choice begins; the planner's own reasons begin otherwise.
MPS_SENTENCE = "MPS is "


@dataclass(frozen=True)
class MpsChoice:
    """Whether MPS is used, and why.

    Attributes:
        on: Whether every GPU worker must be an MPS client.
        why: A sentence for people.
        adopted_pipe: Pipe folder of a daemon that somebody else started and that is used as it is.
        version: Binary version of the control program (13000 for CUDA 13.0); 0 where MPS is off.
    """

    on: bool
    why: str
    adopted_pipe: Path | None = None
    version: int = 0


def visible_gpus(inventory: Inventory, config: ServerConfig, environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES and number_of_gpu leave."""
    return select_gpus(inventory, environ.get("CUDA_VISIBLE_DEVICES"), config.number_of_gpu)


def choose_mps(wish: str, inventory: Inventory, gpus: tuple[Gpu, ...], environ: Mapping[str, str]) -> MpsChoice:
    """Decide whether MPS is used.

    Raises:
        MpsError: MPS is wanted and there is no usable GPU, or there is one and the control program is missing.
    """
    if wish == "off":
        return MpsChoice(False, "MPS is off as asked (--mps off, or mps in the settings).")
    why_not = _unusable(inventory, gpus)
    if why_not:
        if wish == "on":
            raise MpsError(f"--mps on, but there is no usable GPU: {why_not}", "Use --mps auto to serve without MPS.")
        return MpsChoice(False, f"MPS is off: {why_not}")
    binary = find_binary(environ)
    if binary is None:
        raise MpsError(
            f"nvidia-cuda-mps-control is not on PATH, and {len(gpus)} GPU(s) would be served without MPS.",
            "Install the driver's compute utilities (package nvidia-compute-utils or nvidia-cuda-mps; in containers "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility), or pass --mps off.",
        )
    version = binary_version(binary)
    pipe = environ.get("CUDA_MPS_PIPE_DIRECTORY")
    if pipe and Control(Path(pipe), environ=environ).answers():
        why = f"MPS is on, through the daemon that already answers at {pipe}; it is used and never stopped."
        return MpsChoice(True, why, Path(pipe), version)
    why = f"MPS is on, one control daemon for each of {len(gpus)} GPU(s), control binary {version}."
    return MpsChoice(True, why, None, version)


def _unusable(inventory: Inventory, gpus: tuple[Gpu, ...]) -> str:
    """Why these GPUs cannot be used with MPS; empty if they can."""
    if not inventory.gpus:
        return inventory.problem
    if not gpus:
        return "CUDA_VISIBLE_DEVICES or number_of_gpu leaves no GPU."
    mig = [gpu for gpu in gpus if gpu.mig_enabled]
    if mig:
        return (
            f"GPU {mig[0].index} ({mig[0].name}) is in MIG mode, on which ts-mps plans but does not serve: it was not "
            "tried on hardware."
        )
    prohibited = [gpu for gpu in gpus if gpu.compute_mode == "Prohibited"]
    if prohibited:
        return f"GPU {prohibited[0].index} is in compute mode Prohibited."
    return ""


def check_manageable(models: tuple[ModelRequest, ...], config: ServerConfig, mps: MpsChoice) -> None:
    """Workers that TorchServe starts through another program than ``--python`` cannot be made MPS clients."""
    if not mps.on:
        return
    for model in models:
        how = unmanaged(model, config)
        if how:
            raise MpsError(
                f"Model {model.name} {how}, so its workers would run without MPS beside the others.",
                "Change the model's configuration, or start it in an instance of its own with --mps off.",
            )


def unmanaged(model: ModelRequest, config: ServerConfig) -> str:
    """How TorchServe starts this model's workers past ``--python``; empty if it does not."""
    if model.parallel:
        return "sets parallelType, for which TorchServe starts workers through torchrun or on several GPUs each"
    if model.use_venv:
        return "sets useVenv, for which TorchServe starts workers with an interpreter of their own"
    if model.runtime not in ("python", "python3"):
        return f"has runtime {model.runtime}, for which TorchServe starts another program"
    if config.boolean("cpu_launcher_enable"):
        return "is started through cpu_launcher_enable"
    return ""

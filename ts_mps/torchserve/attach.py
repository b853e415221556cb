"""What stands between a worker's LOAD message and its handler: a slot, an environment, a daemon, and then a proof."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

from ts_mps.errors import MpsError
from ts_mps.mps import limits
from ts_mps.mps.control import Control
from ts_mps.plan.model import PlannedGpu, Slot
from ts_mps.worker_records import Proof, Share

#: How long a worker waits for its daemon. TorchServe allows a LOAD 120 s by default (default_startup_timeout).
DAEMON_SECONDS = 90.0

#: How long a worker looks for itself in its daemon's client list. Of some hundred workers that started side by side on
#: an H200 one was not in it at its first look, after seconds of work on the GPU.
PROOF_SECONDS = 5.0


class NotAClient(MpsError):
    """This process uses the GPU past MPS, for all that its daemon says."""


def environment(slot: Slot, gpu: PlannedGpu | None, no_mps: Path) -> dict[str, str]:
    """The variables that make this process what its slot says, for the time before CUDA is first used.

    Setting them after ``import torch`` is early enough: they are read when the context is opened (measured on driver
    580).

    A limit that the slot has replaces one that the user's environment has for all workers. Where the slot has none, the
    user's stays: to set it is an explicit wish, and what the worker really got is recorded. Without MPS none has any
    effect, and none is set.

    Args:
        slot: The worker's place and share.
        gpu: Its GPU, or None for a worker on the CPU.
        no_mps: A folder without a daemon: pointed at it, CUDA runs without MPS even where the default pipe folder
            has a daemon of somebody else's.
    """
    variables: dict[str, str] = {}
    if slot.threads:
        variables["OMP_NUM_THREADS"] = str(slot.threads)
    if gpu is None:
        return variables
    variables["CUDA_VISIBLE_DEVICES"] = gpu.uuid
    variables["CUDA_MPS_PIPE_DIRECTORY"] = gpu.pipe or str(no_mps)
    if gpu.pipe is None:
        return variables
    if slot.thread_percentage is not None:
        variables[limits.THREAD_PERCENTAGE] = f"{slot.thread_percentage:g}"
    if slot.memory_limit is not None:
        # Keyed by ordinal: limits keyed by UUID were not applied by drivers of early 2024 (k8s-device-plugin 0.15.0).
        variables[limits.MEMORY_LIMIT] = f"0={slot.memory_limit}"
    if slot.priority is not None:
        variables[limits.PRIORITY] = str(slot.priority)
    return variables


def take_share(slot: Slot, variables: Mapping[str, str], environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the environment, the thread count and the core affinity of this process."""
    environ.update(variables)
    if slot.threads:
        import torch

        # The OpenMP runtime read OMP_NUM_THREADS when torch was imported, before the slot was known.
        torch.set_num_threads(slot.threads)
    if slot.cores:
        os.sched_setaffinity(0, slot.cores)


def share_of(gpu: PlannedGpu | None, environ: Mapping[str, str] = os.environ) -> Share:
    """What this process got, from CUDA, its environment and the kernel.

    CUDA is not used for it: where nothing in this process has used it through torch, the SMs are not known.

    Args:
        gpu: Its GPU, or None for a worker on the CPU.
        environ: Its environment, as CUDA found it when the context was opened.
    """
    cores = tuple(sorted(os.sched_getaffinity(0)))
    if gpu is None or gpu.pipe is None:
        return Share(None if gpu is None else _sms(), None, None, None, cores)
    memory = limits.memory_of(environ, gpu.uuid)
    return Share(_sms(), limits.percentage_of(environ), memory, limits.priority_of(environ), cores)


def _sms() -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    # Under MPS this attribute is the limited count ("cudaDevAttrMultiProcessorCount" in the guide to the thread
    # percentage).
    return int(torch.cuda.get_device_properties(0).multi_processor_count)


def wait_for_daemon(
    gpu: PlannedGpu,
    control: Control,
    seconds: float = DAEMON_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until the GPU's daemon answers and its server, if it runs, takes clients.

    Without this a worker whose daemon is gone would run without MPS, and CUDA would not say a word.

    Raises:
        MpsError: The daemon did not answer, or its server stayed in FAULT, for ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            states = {server: control.server_status(server) for server in control.servers()}
            if "FAULT" not in states.values():
                return
            trouble = f"its server is in FAULT ({states})"
        except MpsError as error:
            trouble = error.what
        if time.monotonic() > deadline:
            raise MpsError(
                f"The MPS daemon of {gpu.label} did not take clients for {seconds:g} s: {trouble}",
                "The worker was not loaded, because it would have run without MPS. See: ts-mps status",
            )
        sleep(0.2)


def prove(gpu: PlannedGpu, control: Control, model: str, seconds: float = PROOF_SECONDS) -> Proof:
    """Find this process in the client list of its GPU's daemon.

    A handler that has not used CUDA while it loaded has no context yet; one is opened here, so that no worker serves
    unproven and the first request does not pay for it.

    Raises:
        NotAClient: The process has a CUDA context and is no client: it runs without MPS, or in another PID namespace
            than its daemon.
    """
    proof = _look(control)
    if proof is not None:
        return proof
    import torch

    torch.zeros(1, device="cuda")
    deadline = time.monotonic() + seconds
    while (proof := _look(control)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if proof is not None:
        return proof
    raise NotAClient(
        f"A worker of model {model} (pid {os.getpid()}) uses {gpu.label} and is not in the client list of its MPS "
        f"daemon at {gpu.pipe}: it runs without MPS, or in another PID namespace than the daemon.",
        "A handler must not change CUDA_MPS_PIPE_DIRECTORY or CUDA_VISIBLE_DEVICES; in containers the daemon and the "
        "workers must share a PID namespace.",
    )


def _look(control: Control) -> Proof | None:
    for server in control.servers():
        if os.getpid() in control.clients(server):
            return Proof(server, time.time())
    return None

"""MPS of others on the same GPUs: two servers take turns, and two users of one daemon wait for each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from ts_mps.doctor.findings import Findings
from ts_mps.errors import MpsError
from ts_mps.gpu.inventory import Gpu
from ts_mps.guardian.choice import MpsChoice
from ts_mps.mps.control import PIPE_VARIABLE, Control, DaemonNotFound
from ts_mps.mps.process import check_serves
from ts_mps.paths import Home

#: Where CUDA looks for a daemon if nobody says otherwise.
DEFAULT_PIPE = Path("/tmp/nvidia-mps")
#: Both programs' names begin like this.
_PROGRAMS = "nvidia-cuda-mps"
#: Seconds for a daemon to answer.
_ANSWER_S = 3.0


def check_foreign_mps(
    found: Findings, home: Home | None, gpus: tuple[Gpu, ...], mps: MpsChoice, environ: Mapping[str, str]
) -> None:
    """The user's daemon, other daemons on these GPUs, and MPS of other users. MPS is on."""
    named = environ.get(PIPE_VARIABLE)
    if mps.adopted_pipe is not None:
        _adopted(found, mps.adopted_pipe, gpus, environ)
    elif named:
        found.warn(
            PIPE_VARIABLE,
            f"No MPS daemon answers at {PIPE_VARIABLE}={named}; daemons of our own are used instead.",
            f"Start that daemon first, or unset {PIPE_VARIABLE}.",
        )
    running = _running()
    ours = None if home is None else os.path.realpath(home.root / "gpus")
    adopted = None if mps.adopted_pipe is None else os.path.realpath(mps.adopted_pipe)
    pipes = sorted({os.path.realpath(DEFAULT_PIPE), *_pipes(running)})
    strangers = [
        _stranger(found, Path(pipe), gpus, environ)
        for pipe in pipes
        if pipe != adopted and not (ours and pipe.startswith(ours + os.sep))
    ]
    if not any(strangers):
        found.ok("foreign daemon", "No other MPS daemon serves these GPUs.")
    _other_users(found, running)


def _adopted(found: Findings, pipe: Path, gpus: tuple[Gpu, ...], environ: Mapping[str, str]) -> None:
    control = Control(pipe, environ=environ, timeout=_ANSWER_S)

    def serves() -> None:
        for gpu in gpus:
            check_serves(control, gpu.uuid)

    good = f"The MPS daemon at {pipe} serves these GPUs; a start adopts it and never stops it."
    found.attempt(PIPE_VARIABLE, serves, lambda _: good)


def _stranger(found: Findings, pipe: Path, gpus: tuple[Gpu, ...], environ: Mapping[str, str]) -> bool:
    """Report a daemon that is not ours; False if there is none, or it serves other GPUs."""
    control = Control(pipe, environ=environ, timeout=_ANSWER_S)
    stop = f"echo quit | {PIPE_VARIABLE}={pipe} nvidia-cuda-mps-control"
    try:
        control.servers()
        devices = control.devices()
    except DaemonNotFound:
        return False
    except MpsError as error:
        found.warn("foreign daemon", error.what, "Ask whoever started it to end it.")
        return True
    shared = [gpu.index for gpu in gpus if not devices or gpu.uuid in devices]
    if shared:
        found.warn(
            "foreign daemon",
            f"An MPS daemon that this instance does not use answers at {pipe} and serves GPU "
            f"{', '.join(map(str, shared))}: its clients and ours take turns instead of running side by side.",
            f"Set {PIPE_VARIABLE}={pipe} to use it, or stop it: {stop}",
        )
    return bool(shared)


def _running() -> list[psutil.Process]:
    """Every MPS process that can be seen."""
    return [
        process
        for process in psutil.process_iter(["pid", "cmdline", "username", "uids", "status"])
        # An MPS daemon that nobody has reaped is dead.
        if Path((process.info["cmdline"] or [""])[0]).name.startswith(_PROGRAMS)
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def _pipes(running: list[psutil.Process]) -> set[str]:
    """Pipe folders of the processes whose environment may be read: the same user's, and for root everybody's."""
    pipes = set()
    for process in running:
        with suppress(psutil.Error):
            pipes.add(os.path.realpath(process.environ().get(PIPE_VARIABLE) or DEFAULT_PIPE))
    return pipes


def _other_users(found: Findings, running: list[psutil.Process]) -> None:
    others = [
        process.info
        for process in running
        if process.info["uids"] is not None and process.info["uids"].real != os.getuid()
    ]
    if others:
        who = ", ".join(f"{Path(info['cmdline'][0]).name} of {info['username']} (pid {info['pid']})" for info in others)
        found.warn(
            "other users' MPS",
            f"MPS of another user is running: {who}. On one daemon clients of two users wait for each other, and two "
            "daemons on one GPU take turns.",
            "Run TorchServe as that user with that daemon's CUDA_MPS_PIPE_DIRECTORY, or give each user GPUs of their "
            "own by CUDA_VISIBLE_DEVICES.",
        )
    else:
        found.ok("other users' MPS", "No MPS process of another user.")

"""What a guardian starts with: its first state, what must become ready, and the instance's folder."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace

from ts_mps.errors import PreflightError
from ts_mps.files import write_json
from ts_mps.guardian.choice import unmanaged
from ts_mps.guardian.metrics import command as metrics_command
from ts_mps.guardian.prepare import Prepared, torchserve_pid_file
from ts_mps.guardian.ready import Expected
from ts_mps.guardian.state import GpuState, State, guardian_lives, load_state
from ts_mps.processes import myself
from ts_mps.torchserve.config import default_overrides, write_effective
from ts_mps.torchserve.endpoints import endpoints
from ts_mps.torchserve.wrapper import wrapper_script

#: Sockets of named instances are numbered from here on, so many for each; TorchServe's own default is 9000.
FIRST_NAMED_PORT = 10000
PORTS_EACH = 1000


def write_folder(prepared: Prepared, state: State) -> None:
    """Make the instance's folder as this start needs it; what an earlier one left in it goes.

    Raises:
        OSError: It cannot be written.
    """
    paths = prepared.paths
    for folder in (paths.slots, paths.bin, paths.failures, paths.no_mps, paths.changes):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    if prepared.mps.on:
        for gpu in prepared.gpus:
            prepared.home.gpu(gpu.uuid).seats.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in (paths.stop_request, paths.watched):
        file.unlink(missing_ok=True)
    write_json(paths.plan, prepared.plan.as_json())
    overrides = default_overrides(prepared.config, metrics_command(paths, [gpu.uuid for gpu in prepared.gpus]))
    overrides["initial_worker_port"] = str(state.worker_port)
    if prepared.inventory.gpus:
        overrides["number_of_gpu"] = str(len(prepared.gpus))
    write_effective(paths.config, prepared.config, overrides)
    script = wrapper_script(sys.executable, prepared.home, paths)
    # An archive of runtime "python3" makes TorchServe start `python3` from PATH instead of --python.
    for name in (paths.worker_python, paths.bin / "python3"):
        name.write_text(script)
        name.chmod(0o700)


def unwritable(prepared: Prepared, error: OSError) -> PreflightError:
    """The sentence for a runtime folder that cannot be written, usually because the disk is full."""
    return PreflightError(
        f"The start could not write {error.filename or prepared.paths.root}: {error.strerror}.",
        f"Make room on the file system of {prepared.home.root}, or choose another with --runtime-dir.",
    )


def first_state(prepared: Prepared) -> State:
    """The state before the guardian has done anything; it already names all that may be left behind."""
    if prepared.taken_over is not None:
        return replace(prepared.taken_over, guardian=myself())
    adopted = prepared.mps.adopted_pipe is not None
    gpus = tuple(
        GpuState(
            gpu.index,
            gpu.uuid,
            gpu.name,
            gpu.cap,
            gpu.pipe,
            None if adopted or gpu.pipe is None else str(prepared.home.gpu(gpu.uuid).log),
            adopted=adopted,
        )
        for gpu in prepared.plan.gpus
    )
    return State(
        instance=prepared.paths.name,
        phase="starting",
        mps="on" if prepared.mps.on else "off",
        mps_why=prepared.mps.why,
        guardian=myself(),
        gpus=gpus,
        endpoints=endpoints(prepared.config.resolved, prepared.java.path, prepared.folder, prepared.paths.root),
        folder=str(prepared.folder),
        config=str(prepared.paths.config),
        config_source=prepared.config.source,
        pid_file=str(torchserve_pid_file(prepared.paths)),
        drain_timeout=prepared.arguments.drain_timeout,
        worker_port=_worker_port(prepared),
    )


def expected(prepared: Prepared) -> Expected:
    """What must become ready."""
    return Expected(
        models=tuple(model.name for model in prepared.models),
        scale={
            (model.name, model.version): model.workers
            for model in prepared.models
            if model.workers != model.configured_workers
        },
        proven=prepared.mps.on,
        unmanaged=frozenset(m.name for m in prepared.models if unmanaged(m, prepared.config)),
    )


def _worker_port(prepared: Prepared) -> int:
    """Workers' sockets are named by number in one temp folder: a second instance counts from a number of its own."""
    if prepared.paths.name == "default" or "initial_worker_port" in prepared.config.resolved:
        return prepared.config.initial_worker_port
    others = [load_state(other) for other in prepared.home.instances() if guardian_lives(other)]
    taken = {state.worker_port for state in others if state is not None}
    for port in range(FIRST_NAMED_PORT, 60000, PORTS_EACH):
        if port not in taken:
            return port
    raise PreflightError("No free numbers for worker sockets are left.", "Stop an instance first.")

"""Everything that can be known before anything is started: facts, checks, the plan. Only the runtime folder is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ts_mps.errors import PreflightError, TsMpsError
from ts_mps.gpu.inventory import Gpu, Inventory, read_inventory
from ts_mps.guardian.choice import MpsChoice, check_manageable, choose_mps, visible_gpus
from ts_mps.guardian.planning import plan_start, read_ground
from ts_mps.guardian.state import State, guardian_lives, load_state
from ts_mps.paths import Home, InstancePaths, resolve_home
from ts_mps.plan.model import Plan
from ts_mps.torchserve import config as configuration
from ts_mps.torchserve import pid_file
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.command import LOG_CONFIG, java_command
from ts_mps.torchserve.java import Java, find_java
from ts_mps.torchserve.models import ModelRequest, requested_models
from ts_mps.torchserve.ports import port_problems
from ts_mps.torchserve.registration import Machine
from ts_mps.torchserve.server_config import ServerConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """A start that has passed its checks.

    Attributes:
        arguments: What was asked for.
        home: The runtime folder.
        paths: The instance's files.
        folder: The working folder, which becomes java's.
        environ: The environment of the caller.
        config: TorchServe's configuration as the user gave it.
        java: The Java runtime.
        inventory: All GPUs of the machine.
        gpus: The GPUs that may be used.
        mps: Whether MPS is used.
        models: What TorchServe will load at its start, as far as that can be known.
        plan: GPUs and slots.
        notes: Things worth knowing, one sentence each.
        taken_over: State of the instance that serves without a guardian and is gone on with; None for a fresh start.
    """

    arguments: StartArguments
    home: Home
    paths: InstancePaths
    folder: Path
    environ: Mapping[str, str]
    config: ServerConfig
    java: Java
    inventory: Inventory
    gpus: tuple[Gpu, ...]
    mps: MpsChoice
    models: tuple[ModelRequest, ...]
    plan: Plan
    notes: tuple[str, ...]
    taken_over: State | None = None


class Findings:
    """Collects the errors of independent checks, so that the user meets all of them at once."""

    def __init__(self) -> None:
        self.errors: list[TsMpsError] = []

    def check(self, look: Callable[[], T]) -> T | None:
        """The value of ``look``, or None after noting its error."""
        try:
            return look()
        except TsMpsError as error:
            self.errors.append(error)
            return None

    def stop_if_any(self) -> None:
        """Raise what was found.

        Raises:
            TsMpsError: The only finding itself; of several, one error that lists them and has the first one's code.
        """
        if not self.errors:
            return
        if len(self.errors) == 1:
            raise self.errors[0]
        several = type(self.errors[0])(
            f"{len(self.errors)} things stand in the way of a start:",
            details="\n".join(f"{number}. {error}" for number, error in enumerate(self.errors, 1)),
        )
        raise several


def prepare(arguments: StartArguments, environ: Mapping[str, str], folder: Path) -> Prepared:
    """Look at everything, decide everything, start nothing.

    Raises:
        TsMpsError: At least one check failed; see :class:`Findings` for several.
    """
    home = resolve_home(arguments.runtime_dir, environ)
    paths = home.instance(arguments.name)
    check_not_running(arguments, paths)

    config = configuration.load(arguments, environ)
    findings = Findings()
    findings.errors += configuration.check(config)
    # TorchServe's own checks of the files that its flags name, with its own exit status.
    findings.check(lambda: server_command(arguments, paths, environ, "java"))
    ground = findings.check(lambda: read_ground(arguments, environ, folder))
    findings.stop_if_any()
    assert ground is not None  # nothing was found, so it is there
    java = findings.check(lambda: find_java(environ))
    inventory = read_inventory()
    gpus = findings.check(lambda: visible_gpus(inventory, config, environ)) or ()
    mps = findings.check(lambda: choose_mps(ground.mps_wish, inventory, gpus, environ))
    models = findings.check(lambda: find_models(arguments, config, gpus)) or ()
    findings.check(lambda: check_key_file(config, home, paths, folder))
    findings.errors += port_problems(config.resolved)
    findings.stop_if_any()
    assert java is not None and mps is not None  # nothing was found, so both are there
    planned = plan_start(ground, inventory, gpus, mps, models, arguments, home, environ)
    check_manageable(planned.models, config, planned.mps)
    notes = (*_notes(config, gpus, planned.mps, environ), *planned.notes)
    try:
        paths.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PreflightError(f"The folder {paths.root} cannot be made: {error.strerror}.") from error
    return Prepared(
        arguments,
        home,
        paths,
        folder,
        environ,
        config,
        java,
        inventory,
        gpus,
        planned.mps,
        planned.models,
        planned.plan,
        notes,
    )


def find_models(arguments: StartArguments, config: ServerConfig, gpus: tuple[Gpu, ...]) -> tuple[ModelRequest, ...]:
    """What TorchServe will load, and how many workers of each."""
    store = arguments.model_store or config.resolved["model_store"]
    machine = Machine(gpus=len(gpus), cpus=os.cpu_count() or 1)
    return requested_models(
        config.resolved, models=arguments.models, model_store=Path(store), workers=arguments.workers, machine=machine
    )


def server_command(arguments: StartArguments, paths: InstancePaths, environ: Mapping[str, str], java: str) -> list[str]:
    """The java command of this instance."""
    return java_command(
        arguments,
        environ=environ,
        java=java,
        python=str(paths.worker_python),
        config=paths.config,
        log_config=LOG_CONFIG,
    )


def check_not_running(arguments: StartArguments, paths: InstancePaths) -> None:
    """Refuse to start what runs already.

    Raises:
        TsMpsError: This instance, or for the default one a TorchServe of this temp folder, is running, or its state is
            of a version that is not known here.
    """
    # First, since who reads "already running" goes to ts-mps stop, which cannot stop what is of another version.
    state = load_state(paths)
    if guardian_lives(paths):
        raise TsMpsError(
            f"Instance {paths.name} is already running.",
            f"See: ts-mps status{_name(paths)}. Stop it with: ts-mps stop{_name(paths)}",
        )
    if state is not None and state.java is not None and state.java.alive():
        raise TsMpsError(
            f"TorchServe of instance {paths.name} (pid {state.java.pid}) is still running though its guardian is gone.",
            f"Clean up first with: ts-mps stop{_name(paths)}",
        )
    pid = pid_file.read(torchserve_pid_file(paths))
    if pid is not None:
        raise TsMpsError(
            f"TorchServe is already running (pid {pid}), and it is not ours.", "Stop it with: torchserve --stop"
        )


def torchserve_pid_file(paths: InstancePaths) -> Path:
    """TorchServe's own pid file for the default instance, so that `torchserve --stop` works.

    TorchServe knows one server per temp folder, so a named instance has its file in a folder of its own.
    """
    return pid_file.location() if paths.name == "default" else paths.root / pid_file.location().name


def _name(paths: InstancePaths) -> str:
    return "" if paths.name == "default" else f" --name {paths.name}"


def check_key_file(config: ServerConfig, home: Home, paths: InstancePaths, folder: Path) -> None:
    """Two servers with token authorisation in one folder would overwrite each other's key file.

    Raises:
        PreflightError: Another instance that runs keeps its keys there.
    """
    if not config.token_auth:
        return
    key_file = str(folder / "key_file.json")
    for other in home.instances():
        state = load_state(other) if other != paths and guardian_lives(other) else None
        if state is not None and state.endpoints.key_file == key_file:
            raise PreflightError(
                f"Instance {other.name} keeps its token keys in {key_file}, and TorchServe would overwrite them.",
                "Start this instance from another folder, or with --disable-token-auth.",
            )


def _notes(config: ServerConfig, gpus: tuple[Gpu, ...], mps: MpsChoice, environ: Mapping[str, str]) -> tuple[str, ...]:
    notes = []
    if config.snapshot is not None:
        notes.append(
            f"TorchServe prefers its snapshot {config.snapshot} to ./config.properties, worker counts included; "
            "--ncs ignores snapshots, --ts-config names a file."
        )
    if mps.on and mps.adopted_pipe is None and environ.get("CUDA_MPS_PIPE_DIRECTORY"):
        notes.append(
            f"No MPS daemon answers at CUDA_MPS_PIPE_DIRECTORY={environ['CUDA_MPS_PIPE_DIRECTORY']}; "
            "daemons of our own are used instead."
        )
    notes += [
        f"GPU {gpu.index} is in compute mode Exclusive_Process and MPS is off: only one worker can use it."
        for gpu in gpus
        if not mps.on and gpu.compute_mode == "Exclusive_Process"
    ]
    return tuple(notes)

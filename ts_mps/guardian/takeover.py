"""Taking over an instance whose guardian died: TorchServe and its workers serve on, and are watched again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ts_mps.errors import TsMpsError
from ts_mps.files import read_json
from ts_mps.gpu.inventory import read_inventory
from ts_mps.guardian.choice import MpsChoice
from ts_mps.guardian.planning import with_planned_workers
from ts_mps.guardian.prepare import Prepared, find_models, server_command
from ts_mps.guardian.state import State, guardian_lives, load_state
from ts_mps.mps.control import binary_version, find_binary
from ts_mps.paths import InstancePaths, resolve_home
from ts_mps.plan.model import Plan
from ts_mps.torchserve import config as configuration
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.java import find_java

#: Phases in which there is something to take over; one that was being stopped is to be stopped.
_SERVING = ("starting", "serving", "recovering")


def orphan(paths: InstancePaths) -> State | None:
    """The state of an instance that serves without a guardian; None if it has one, or does not serve.

    Raises:
        TsMpsError: Its state is of a version that is not known here.
    """
    state = load_state(paths)
    if state is None or guardian_lives(paths) or state.phase not in _SERVING:
        return None
    return state if state.java is not None and state.java.alive() else None


def take_over(arguments: StartArguments, environ: Mapping[str, str], folder: Path) -> Prepared | None:
    """What a start needs to go on with an instance that serves without a guardian; None if there is no such.

    Nothing is planned anew, and no port is checked: both are taken, by the instance itself. The arguments must be those
    of its start, because java is started with them again should it die.

    Raises:
        TsMpsError: Other models are asked for, its plan is gone, or its state cannot be read.
    """
    home = resolve_home(arguments.runtime_dir, environ)
    paths = home.instance(arguments.name)
    state = orphan(paths)
    if state is None:
        return None
    config = configuration.load(arguments, environ)
    server_command(arguments, paths, environ, "java")
    inventory = read_inventory()
    plan = _plan(paths)
    used = {gpu.uuid for gpu in plan.gpus}
    gpus = tuple(gpu for gpu in inventory.gpus if gpu.uuid in used)
    models = find_models(arguments, config, gpus)
    asked, planned = {model.name for model in models}, {slot.model for slot in plan.slots}
    if asked != planned:
        raise TsMpsError(
            f"Instance {paths.name} serves {_names(planned)} without a guardian, and {_names(asked)} is asked for.",
            f"Start it with the arguments of its first start, or stop it first: ts-mps stop --name {paths.name}",
        )
    return Prepared(
        arguments=arguments,
        home=home,
        paths=paths,
        folder=Path(state.folder),
        environ=environ,
        config=config,
        java=find_java(environ),
        inventory=inventory,
        gpus=gpus,
        mps=_mps(state, environ),
        models=with_planned_workers(models, plan),
        plan=plan,
        notes=(f"Instance {paths.name} serves without a guardian; it is taken over as it is.",),
        taken_over=replace(state, error=""),
    )


def _plan(paths: InstancePaths) -> Plan:
    try:
        return Plan.from_json(read_json(paths.plan) or {})
    except ValueError as error:
        raise TsMpsError(
            f"The plan {paths.plan} of an instance without a guardian cannot be read: {error}.",
            f"Stop it and start it anew: ts-mps stop --name {paths.name}",
        ) from error


def _mps(state: State, environ: Mapping[str, str]) -> MpsChoice:
    adopted = next((Path(gpu.pipe) for gpu in state.gpus if gpu.adopted and gpu.pipe), None)
    binary = find_binary(environ) if state.mps == "on" else None
    return MpsChoice(state.mps == "on", state.mps_why, adopted, binary_version(binary) if binary else 0)


def _names(models: set[str]) -> str:
    return ", ".join(sorted(models)) or "no model"

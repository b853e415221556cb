"""A machine as a file, so that a plan can be made for one that one does not sit at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ts_mps.errors import PreflightError, UsageError
from ts_mps.gpu.inventory import COMPUTE_MODES, Gpu, Inventory, MigInstance
from ts_mps.tables import Table, is_integer

#: Version of the file; raised when a key changes its meaning.
MACHINE_VERSION = 1
_MOST_CORES = 2**16
_MOST_SMS = 2**12
_MOST_CLIENTS = 2**12


@dataclass(frozen=True)
class MachineFacts:
    """What a plan needs to know of a machine.

    Attributes:
        inventory: Its GPUs.
        cores: Host cores that workers may use, ascending.
        control_version: Binary version of its MPS control program (13000 for CUDA 13.0); 0 if it has none.
        measured_caps: By UUID, the client caps that ``ts-mps doctor --probe-cap`` measured there.
    """

    inventory: Inventory
    cores: tuple[int, ...]
    control_version: int
    measured_caps: Mapping[str, int] = field(default_factory=dict)


def machine_json(machine: MachineFacts) -> dict[str, Any]:
    """The file's content; :func:`machine_from_json` reads it back."""
    return {
        "version": MACHINE_VERSION,
        "driver_version": machine.inventory.driver_version,
        "control_version": machine.control_version,
        "cores": list(machine.cores),
        "measured_caps": dict(machine.measured_caps),
        "gpus": [asdict(gpu) for gpu in machine.inventory.gpus],
    }


def read_machine_file(path: Path) -> MachineFacts:
    """Read what ``ts-mps plan --print-inventory`` wrote, on this machine or another.

    Raises:
        UsageError: There is no such file.
        PreflightError: It cannot be read, or does not describe a machine with GPUs.
    """
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise UsageError(
            f"The inventory file {path} does not exist.", "ts-mps plan --print-inventory writes one."
        ) from error
    except OSError as error:
        raise PreflightError(f"The inventory file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise PreflightError(f"The inventory file {path} is not text: {error.reason}.") from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PreflightError(f"The inventory file {path} is not JSON: {error}.") from error
    return machine_from_json(value, str(path))


def machine_from_json(value: Any, source: str) -> MachineFacts:
    """The machine that a file's content describes.

    Args:
        value: What the JSON parser made of it.
        source: The file, for sentences.

    Raises:
        PreflightError: A key is unknown or missing, a number cannot be, a UUID stands twice, or there is no GPU.
    """
    known = ("version", "driver_version", "control_version", "cores", "measured_caps", "gpus")
    # The version first: another one may have other keys.
    if isinstance(value, dict) and "version" in value and value["version"] != MACHINE_VERSION:
        raise PreflightError(
            f"{source} is an inventory of version {value['version']}; this ts-mps reads version {MACHINE_VERSION}.",
            "Write it again with ts-mps plan --print-inventory.",
        )
    table = Table(value, source, known)
    table.integer("version", MACHINE_VERSION, MACHINE_VERSION)
    gpus = tuple(_gpu(one, f"{source}: gpus[{place}]") for place, one in enumerate(table.items("gpus")))
    if not gpus:
        raise PreflightError(f"{source} lists no GPU.", "A plan for the CPU needs no inventory.")
    _check_twice([str(gpu.index) for gpu in gpus], "the index", source)
    uuids = [uuid for gpu in gpus for uuid in (gpu.uuid, *(instance.uuid for instance in gpu.mig))]
    _check_twice(uuids, "the UUID", source)
    cores = _cores(table, "cores")
    if not cores:
        table.refuse("cores", "a list of at least one core")
    return MachineFacts(
        inventory=Inventory(gpus, table.optional("driver_version", table.text, ""), ""),
        cores=cores,
        control_version=table.optional("control_version", lambda key: table.integer(key, 0, 10**6), 0),
        measured_caps=_measured(table, tuple(uuids)),
    )


def _gpu(value: Any, place: str) -> Gpu:
    known = tuple(Gpu.__dataclass_fields__)
    table = Table(value, place, known)
    total = table.size("memory_total", least=1)
    instances = table.items("mig") if "mig" in table.value else []
    mig = tuple(_instance(one, f"{place}.mig[{number}]") for number, one in enumerate(instances))
    gpu = Gpu(
        index=table.integer("index", 0, 4095),
        uuid=table.text("uuid"),
        name=table.text("name"),
        compute_capability=_compute_capability(table),
        memory_total=total,
        memory_free=table.optional("memory_free", lambda key: _at_most(table, key, total), total),
        compute_mode=table.optional("compute_mode", lambda key: table.one_of(key, COMPUTE_MODES), COMPUTE_MODES[0]),
        mig_enabled=table.optional("mig_enabled", table.boolean, bool(mig)),
        cores=table.optional("cores", lambda key: _cores(table, key), ()),
        sms=table.optional("sms", lambda key: table.integer(key, 0, _MOST_SMS), 0),
        numa_node=None if table.value.get("numa_node") is None else table.integer("numa_node", 0, 4095),
        mig=mig,
    )
    _check_mig(gpu, place)
    return gpu


def _instance(value: Any, place: str) -> MigInstance:
    table = Table(value, place, tuple(MigInstance.__dataclass_fields__))
    total = table.size("memory_total", least=1)
    return MigInstance(
        uuid=table.text("uuid"),
        profile=table.text("profile"),
        memory_total=total,
        memory_free=table.optional("memory_free", lambda key: _at_most(table, key, total), total),
        sms=table.optional("sms", lambda key: table.integer(key, 0, _MOST_SMS), 0),
        slices=table.integer("slices", 1, 8),
    )


def _check_mig(gpu: Gpu, place: str) -> None:
    if gpu.mig and not gpu.mig_enabled:
        raise PreflightError(f"{place} lists MIG instances, and its mig_enabled is false.")
    together = sum(instance.memory_total for instance in gpu.mig)
    if together > gpu.memory_total:
        raise PreflightError(
            f"{place}: its MIG instances have {together} bytes of memory, more than the {gpu.memory_total} of the GPU."
        )
    if gpu.sms and sum(instance.sms for instance in gpu.mig) > gpu.sms:
        raise PreflightError(f"{place}: its MIG instances have more SMs than the {gpu.sms} of the GPU.")


def _compute_capability(table: Table) -> tuple[int, int]:
    parts = table.items("compute_capability")
    if len(parts) != 2 or not all(is_integer(part) and 0 <= part <= 99 for part in parts) or parts[0] == 0:
        table.refuse("compute_capability", "two whole numbers, such as [9, 0]")
    return parts[0], parts[1]


def _at_most(table: Table, key: str, total: int) -> int:
    size = table.size(key)
    if size > total:
        table.refuse(key, f"at most its memory_total ({total} bytes)")
    return size


def _cores(table: Table, key: str) -> tuple[int, ...]:
    cores = table.items(key)
    if not all(is_integer(core) and 0 <= core < _MOST_CORES for core in cores) or len(set(cores)) != len(cores):
        table.refuse(key, f"a list of different core numbers below {_MOST_CORES}")
    return tuple(sorted(cores))


def _measured(table: Table, uuids: tuple[str, ...]) -> dict[str, int]:
    caps = Table(table.value.get("measured_caps", {}), f"{table.place}: measured_caps", uuids)
    return {uuid: caps.integer(uuid, 1, _MOST_CLIENTS) for uuid in caps.value}


def _check_twice(names: list[str], what: str, source: str) -> None:
    for place, name in enumerate(names):
        if name in names[:place]:
            raise PreflightError(f"{source} has {what} {name} twice.", "Each GPU and each instance has its own.")

"""What is not as planned, in sentences for people: pure functions of what was looked up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ts_mps.guardian.instance import GpuStatus, WorkerStatus
from ts_mps.guardian.state import State
from ts_mps.guardian.watched import Watched
from ts_mps.plan.model import Slot


def of_processes(state: State, *, guardian: bool, java: bool) -> list[str]:
    """Of the instance as a whole.

    Args:
        state: What its guardian wrote.
        guardian: Whether the guardian lives.
        java: Whether TorchServe's frontend lives.
    """
    if state.phase in ("stopped", "failed"):
        return [f"It is not running ({state.phase}{': ' + state.error if state.error else ''})."]
    found = []
    if not guardian:
        found.append(
            "Its guardian is gone: nothing watches it. The command of its start takes it over as it is, ts-mps stop "
            "cleans up."
        )
    if not java and state.phase == "serving":
        found.append("TorchServe is gone.")
    if state.phase != "serving":
        found.append(f"It is {state.phase}{': ' + state.why if state.why else '.'}")
    return found


def of_gpus(gpus: Sequence[GpuStatus]) -> list[str]:
    """Of daemons and servers, as they answered just now."""
    said = {
        "gone": "its MPS daemon is gone; workers cannot be started on it.",
        "hung": "its MPS daemon does not answer.",
    }
    found = [f"GPU {gpu.index}: {said[gpu.daemon]}" for gpu in gpus if gpu.daemon in said]
    return found + [f"GPU {gpu.index}: its MPS server is in {gpu.server}." for gpu in gpus if "FAULT" in gpu.server]


def of_watch(watched: Watched | None, now: float) -> list[str]:
    """What only the guardian's watch knows; where there is no look, or an old one, nothing.

    Args:
        watched: The last look.
        now: Seconds of time.monotonic().
    """
    if watched is None or not watched.fresh(now):
        return []
    found = [
        f"GPU {gpu.index} is lost: {gpu.lost}. Its workers are held back, the others serve on. Look at the kernel's "
        "log (dmesg, Xid 79); a GPU that fell off the bus needs a restart of the machine."
        for gpu in watched.gpus
        if gpu.lost
    ]
    if watched.changing:
        found.append(f"It is being changed ({watched.changing}).")
    if hidden := ", ".join(f"{model.hidden} of model {model.name}" for model in watched.models if model.hidden):
        found.append(
            f"Workers that hide from the guardian what they are at ({hidden}): a hang is left to TorchServe, and a "
            "stop takes them for busy. They have made themselves undumpable, or have more rights than the guardian."
        )
    return found + [
        f"Model {model.name}: {count} of {model.planned} places are held back: {reason}"
        for model in watched.models
        for reason, count in model.held.items()
    ]


def of_workers(planned: Sequence[Slot], workers: Sequence[WorkerStatus]) -> list[str]:
    """Of workers against the plan's slots."""
    ready = Counter(worker.model for worker in workers if worker.state == "READY")
    found = [
        f"Model {model}: {ready[model]} of {count} planned workers are READY."
        for model, count in Counter(slot.model for slot in planned).items()
        if ready[model] < count
    ]
    found += [
        f"Worker {worker.pid} of model {worker.model} is READY and not an MPS client."
        for worker in workers
        if worker.attached is False and worker.state == "READY"
    ]
    return found + [sentence for worker in workers if (sentence := _unlimited(worker))]


def _unlimited(worker: WorkerStatus) -> str:
    """The sentence for a worker whose thread percentage was not applied; empty for any other."""
    sms = worker.got.sms if worker.got else None
    if sms is None or worker.expected_sms is None or sms <= worker.expected_sms:
        return ""
    return (
        f"Worker {worker.pid} of model {worker.model} has {sms} SMs of GPU {worker.gpu}, and its thread percentage "
        f"should leave it {worker.expected_sms}: the limit was not applied."
    )

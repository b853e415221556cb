"""Whole GPUs: a server in FAULT or gone, a daemon gone or hung, a GPU lost, a worker that is no client."""

from __future__ import annotations

from dataclasses import replace

from ts_mps.guardian.watch.case import Case
from ts_mps.guardian.watch.memory import Fault, RestoreDaemon
from ts_mps.guardian.watch.seen import ANSWERING, GpuSeen
from ts_mps.holds import Hold

#: Looks in a row without an answer after which a daemon hangs. One may be due to somebody else's command, which the
#: daemon serves first: it takes one front-end at a time.
SILENT_LOOKS = 3
#: Looks in a row in which a worker that is ready must be no client before it is ended.
UNATTACHED_LOOKS = 2
#: Seconds between two tries to bring a daemon back, at most.
LONGEST_PAUSE = 60.0
#: Seconds after which a fault whose workers are not all back is not waited for any longer.
GIVE_UP = 900.0
#: Causes that strike all workers of a GPU at once: none of these ends is a worker's own doing.
COLLECTIVE = frozenset({"server-fault", "server-gone", "daemon-gone", "daemon-hung", "gpu-lost"})
#: Errors that a kernel makes and that MPS hands to all clients of the server; a device-side assert (710) is not among
#: them, it stays with its own client (measured).
_KERNEL = frozenset(f"cuda-error-{code}" for code in (700, 702, 714, 715, 716, 717, 718, 719))
#: What a client may be told instead when another one's kernel took the server: MPS's own errors.
_STRUCK = _KERNEL | {f"cuda-error-{code}" for code in (805, 806, 807, 810)}
#: Seconds within which two workers that tell of such an error tell of the same one.
_TOGETHER = 2.0


def judge_told(case: Case) -> None:
    """Faults of a server that were over before anybody looked: under load all its victims leave within milliseconds.

    Their own words are all that is left then. Two workers of one GPU do not meet such an error together by themselves.
    """
    for gpu in case.seen.gpus:
        if gpu.lost or gpu.daemon not in ANSWERING or gpu.uuid in case.seen.busy:
            continue
        said = [e for e in case.seen.told if (e.kind, e.gpu) == ("worker-fault", gpu.uuid) and e.cause in _STRUCK]
        first = min((event.clock for event in said if event.cause in _KERNEL), default=None)
        if first is None:
            continue
        struck = {event.pid for event in said if abs(event.clock - first) <= _TOGETHER}
        known = case.faults.get(gpu.uuid)
        seen = known is not None and any(process.pid in struck for process in known.victims.values())
        if len(struck) < 2 or seen:
            continue
        # Another one before the last was made good is a fault of its own, and who is still missing is waited for.
        case.faults.pop(gpu.uuid, None)
        text = f"The MPS server of GPU {gpu.index} was in FAULT: {len(struck)} of its clients got its error and left."
        fault = case.open(gpu, "server-fault", text)
        if known is not None:
            case.faults[gpu.uuid] = replace(fault, victims={**known.victims, **fault.victims})
        case.ask.add(gpu.uuid)


def judge_gpus(case: Case) -> None:
    """Every GPU that is not being acted upon."""
    for gpu in case.seen.gpus:
        if gpu.uuid not in case.seen.busy:
            _judge(case, gpu)


def _judge(case: Case, gpu: GpuSeen) -> None:
    if gpu.lost:
        _lost(case, gpu)
        return
    _found_again(case, gpu)
    if gpu.daemon == "gone":
        _restore(case, gpu, "daemon-gone", f"The MPS control daemon of GPU {gpu.index} is gone.")
    elif gpu.daemon == "silent" and gpu.asked:
        case.silent[gpu.uuid] = case.silent.get(gpu.uuid, 0) + 1
        case.ask.add(gpu.uuid)
        if case.silent[gpu.uuid] >= SILENT_LOOKS:
            _restore(case, gpu, "daemon-hung", f"The MPS control daemon of GPU {gpu.index} does not answer.")
    elif gpu.answers:
        case.silent.pop(gpu.uuid, None)
        _servers(case, gpu)
        case.servers[gpu.uuid] = gpu.servers
        _close(case, gpu)


def _lost(case: Case, gpu: GpuSeen) -> None:
    """Nothing can be done for a lost GPU but to keep its workers from coming back to it."""
    case.open(gpu, "gpu-lost", f"GPU {gpu.index} is lost: {gpu.lost}")
    reason = f"GPU {gpu.index} is lost: {gpu.lost}"
    case.holds.update({place.slot: Hold(reason) for place in case.seen.places if place.gpu == gpu.uuid})
    # Past MPS: its server talks to a device that is not there any more.
    case.end(gpu.uuid, [worker.process for worker in case.workers_on(gpu.uuid)], "gpu-lost", through_mps=False)


def _found_again(case: Case, gpu: GpuSeen) -> None:
    fault = case.faults.get(gpu.uuid)
    if fault is not None and fault.kind == "gpu-lost":
        case.say("gpu-back", f"GPU {gpu.index} can be used again.", gpu=gpu.uuid)
        # Its victims are what is waited for; with a daemon it is over as other faults are.
        if gpu.daemon == "off":
            del case.faults[gpu.uuid]
        else:
            case.faults[gpu.uuid] = replace(fault, kind="server-gone", since=case.now)
            case.ask.add(gpu.uuid)
    mine = {place.slot for place in case.seen.places if place.gpu == gpu.uuid}
    # Only a lost GPU's places are held back without an end.
    for slot in [slot for slot, hold in case.holds.items() if slot in mine and hold.until is None]:
        del case.holds[slot]


def _restore(case: Case, gpu: GpuSeen, kind: str, text: str) -> None:
    fault = case.open(gpu, kind, text)
    case.ask.add(gpu.uuid)
    if case.now >= fault.next_try:
        case.actions.append(RestoreDaemon(gpu.uuid))
        # Bounded before the power: a daemon that is gone for good is tried for days, and 2.0**1024 is no float.
        pause = min(LONGEST_PAUSE, 2.0 ** min(fault.tries, 6))
        case.faults[gpu.uuid] = replace(fault, tries=fault.tries + 1, next_try=case.now + pause)


def _servers(case: Case, gpu: GpuSeen) -> None:
    mine = case.workers_on(gpu.uuid)
    gone = case.before.servers.get(gpu.uuid, frozenset()) - gpu.servers
    stale = [worker for worker in mine if worker.server is not None and worker.server not in gpu.servers]
    if "FAULT" in gpu.server:
        case.open(gpu, "server-fault", f"The MPS server of GPU {gpu.index} is in FAULT: all its clients are lost.")
        # A worker that waits for its daemon is no client yet, and may go on waiting.
        dead = [worker.process for worker in mine if worker.server is not None or worker.process.pid in gpu.clients]
        # The server takes nobody until the last client that holds a dead context has exited.
        case.end(gpu.uuid, [*dead, *gpu.strangers], "server-fault")
    elif stale or any(w.gpu == gpu.uuid and w.server in gone for w in case.before.workers.values()):
        if gpu.uuid not in case.faults:
            case.open(gpu, "server-gone", f"The MPS server of GPU {gpu.index} is gone, and its clients are lost.")
        case.end(gpu.uuid, [worker.process for worker in stale], case.faults[gpu.uuid].kind)
    _unattached(case, gpu)


def _unattached(case: Case, gpu: GpuSeen) -> None:
    """Workers that serve and are no client of anything: it should not happen, and must not go on unseen."""
    for worker in case.workers_on(gpu.uuid):
        process = worker.process
        if not worker.ready or worker.server not in gpu.servers or process.pid in gpu.clients or process in case.ended:
            case.unattached.pop(process, None)
            continue
        looks = case.unattached[process] = case.unattached.get(process, 0) + 1
        case.ask.add(gpu.uuid)
        if looks >= UNATTACHED_LOOKS:
            text = f"Worker {process.pid} of model {worker.model} serves on GPU {gpu.index} without MPS; it is ended."
            case.say("worker-unattached", text, gpu=gpu.uuid, model=worker.model, pid=process.pid)
            case.count("worker-unattached", gpu.uuid)
            case.end(gpu.uuid, [process], "unattached")


def _close(case: Case, gpu: GpuSeen) -> None:
    """End a fault once every slot that it struck is served by a client again."""
    fault = case.faults.get(gpu.uuid)
    if fault is None:
        return
    case.ask.add(gpu.uuid)
    took = case.now - fault.since
    if _over(case, gpu, fault):
        del case.faults[gpu.uuid]
        text = f"GPU {gpu.index} serves as planned again, {took:.1f} s after: {fault.kind}."
        case.recovered(text, took, gpu=gpu.uuid, cause=fault.kind)
    elif took > GIVE_UP:
        del case.faults[gpu.uuid]
        text = f"Not every worker of GPU {gpu.index} was back {took:.0f} s after: {fault.kind}."
        case.say("not-recovered", text, gpu=gpu.uuid, cause=fault.kind, seconds=round(took, 3))


def _over(case: Case, gpu: GpuSeen, fault: Fault) -> bool:
    if "FAULT" in gpu.server:
        return False
    back = {
        worker.slot
        for worker in case.workers_on(gpu.uuid)
        if worker.ready and worker.process.pid in gpu.clients and worker.process not in case.ended
    }
    return case.seen.java and all(slot in back or slot in case.holds for slot in fault.victims)

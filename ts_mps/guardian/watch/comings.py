"""Workers one by one: who went, why, who came in its place, who hangs."""

from __future__ import annotations

from ts_mps.activity import UNKNOWN
from ts_mps.guardian.watch.case import Case
from ts_mps.guardian.watch.crashes import crashed
from ts_mps.guardian.watch.faults import COLLECTIVE
from ts_mps.guardian.watch.memory import Absence
from ts_mps.guardian.watch.seen import ANSWERING, ROLLED, SCALED_DOWN, WorkerSeen

#: Seconds before TorchServe's response timeout at which a worker that hangs is ended, so that ``terminate_client``
#: comes before TorchServe's SIGKILL; of a short timeout a quarter.
MARGIN = 2.0
#: How long a fault may have been found before what a worker says of its own end, and belong to it.
_SAME = 10.0


def judge_workers(case: Case) -> None:
    """Who went and who came since the last look."""
    _listen(case)
    living = {worker.slot: worker for worker in case.seen.workers}
    for slot, before in case.before.workers.items():
        if slot not in living or living[slot].process != before.process:
            _went(case, slot, before)
    for worker in case.seen.departed:
        was = case.before.workers.get(worker.slot)
        known = {case.before.departed.get(worker.slot), was.process if was else None}
        # Who went before java was there is no matter of now.
        if worker.process not in known and case.before.java_since is not None:
            _went(case, worker.slot, worker)
    for slot, worker in living.items():
        if slot in case.absent:
            _came(case, slot, worker)
    _forget(case)
    case.end_again()


def _listen(case: Case) -> None:
    """What workers said of themselves; and in a fault of the server, the model that spoke first is blamed.

    All clients of a faulty server get the same error. The one whose kernel it was learns it with its own batch, the
    others only when they next ask CUDA.
    """
    for event in case.seen.told:
        if event.kind != "worker-fault":
            continue
        case.causes[event.pid] = event.cause or event.kind
        case.count("worker-fault", event.gpu)
        fault = case.faults.get(event.gpu)
        if fault is None or fault.kind != "server-fault" or case.blamed.get(event.gpu) == fault.since:
            continue
        if event.clock >= fault.since - _SAME:
            case.blamed[event.gpu] = fault.since
            crashed(case, event.model, event.gpu, 1.0)


def _went(case: Case, slot: int, was: WorkerSeen) -> None:
    fault = case.faults.get(was.gpu) if was.gpu else None
    asked = case.seen.change.asked.get(was.process.pid)
    ended = case.ended.get(was.process)
    cause = (ended.cause if ended else "") or case.causes.get(was.process.pid) or asked or "died"
    if fault is not None and fault.victims.get(slot) == was.process:
        cause = fault.kind
    earlier = case.absent.get(slot)
    if not was.ready:
        case.lost_loading[was.model] = case.now
    if cause == asked and not any(place.slot == slot for place in case.seen.places):
        return  # nobody shall come in its place
    # One that dies before it is ready prolongs the absence that it was to end.
    case.absent[slot] = Absence(earlier.since if earlier else case.now, cause)
    if cause in COLLECTIVE or cause == asked:
        return
    text = f"Worker {was.process.pid} of model {was.model} (slot {slot}) is gone: {cause}."
    case.say("worker-gone", text, gpu=was.gpu or "", model=was.model, pid=was.process.pid, cause=cause)
    if was.planned and (was.model, was.version) not in case.parked:
        crashed(case, was.model, was.gpu, 1 / max(1, len(case.places_of(was.model, was.gpu))), slot)


def _came(case: Case, slot: int, worker: WorkerSeen) -> None:
    absence = case.absent[slot]
    was = case.before.workers.get(slot)
    if was is None or was.process != worker.process:
        causes = case.restarts.setdefault(worker.model, {})
        causes[absence.cause] = causes.get(absence.cause, 0) + 1
    if not worker.ready or worker.process in case.ended:
        return
    del case.absent[slot]
    if absence.cause not in (*COLLECTIVE, ROLLED, SCALED_DOWN):  # the GPU's recovery, or the change, tells of those
        took = case.now - absence.since
        text = f"Worker {worker.process.pid} of model {worker.model} serves in slot {slot} again, {took:.1f} s after."
        case.recovered(text, took, gpu=worker.gpu or "", model=worker.model, cause=absence.cause)


def _forget(case: Case) -> None:
    """Processes that are gone."""
    living = {worker.process for worker in case.seen.workers}
    pids = {process.pid for process in living}
    listed = {pid for gpu in case.seen.gpus for pid in gpu.clients}
    case.ended = {p: ended for p, ended in case.ended.items() if p in living or p.pid in listed}
    case.unattached = {p: looks for p, looks in case.unattached.items() if p in living}
    case.causes = {pid: cause for pid, cause in case.causes.items() if pid in pids}


def judge_batches(case: Case) -> None:
    """End a worker that hangs in a batch a moment before TorchServe does.

    TorchServe kills it without asking MPS (WorkerThread.run: no reply within responseTimeout, then lifeCycle.exit), and
    MPS does not support that a client is killed with work in flight. Of a worker whose page may not be read nobody
    knows whether it goes from batch to batch, so it is left to TorchServe.
    """
    daemons = {gpu.uuid for gpu in case.seen.gpus if gpu.daemon in ANSWERING}
    batches = {}
    for worker in case.seen.workers:
        if worker.batch in (None, UNKNOWN):
            continue
        number, since = case.batches.get(worker.process, (worker.batch, case.now))
        batches[worker.process] = (worker.batch, since if number == worker.batch else case.now)
        limit = case.seen.timeouts.get(worker.model, float("inf"))
        took = case.now - batches[worker.process][1]
        if took < limit - min(MARGIN, limit / 4) or worker.gpu is None or worker.process in case.ended:
            continue
        if worker.gpu in daemons and worker.gpu not in case.seen.busy:
            text = f"Worker {worker.process.pid} of model {worker.model} hangs in a batch, {took:.0f} s by now."
            case.say("worker-hung", text, gpu=worker.gpu, model=worker.model, pid=worker.process.pid)
            case.count("worker-hung", worker.gpu)
            case.end(worker.gpu, [worker.process], "hung")
    case.batches = batches

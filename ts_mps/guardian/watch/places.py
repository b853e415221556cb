"""The plan's places: given out again after a quiet time, models without any put to rest, workers that nobody starts."""

from __future__ import annotations

from ts_mps.guardian.watch.case import Case
from ts_mps.guardian.watch.memory import LearnTimeout, ReviveModel, ScaleModel
from ts_mps.guardian.watch.seen import Place
from ts_mps.processes import ProcessId
from ts_mps.torchserve.threads import RETRY_SECONDS, quiet_seconds

#: Seconds without a try to start a missing worker after which TorchServe is asked whether it has given up: by then it
#: has, unless the model allows it more time.
GIVEN_UP = quiet_seconds(RETRY_SECONDS)
#: Seconds until a model that TorchServe could not be asked to wake, or did not answer about, is asked for again.
WAKE_AGAIN = 60.0


def judge_places(case: Case, java_since: float) -> None:
    """What TorchServe is to be asked for."""
    _release(case)
    models: dict[tuple[str, str], list[Place]] = {}
    for place in case.seen.places:
        models.setdefault((place.model, place.version), []).append(place)
    for key, places in models.items():
        if key[0] not in case.seen.busy and not _rest(case, key, places):
            _revive(case, key, places, java_since)
    _learn(case)


def _release(case: Case) -> None:
    """Holds whose time is over."""
    model = {place.slot: place.model for place in case.seen.places}
    for slot in [slot for slot, hold in case.holds.items() if hold.lapsed(case.now)]:
        del case.holds[slot]
        text = f"Slot {slot} takes workers of model {model.get(slot, '?')} again."
        case.say("released", text, model=model.get(slot, ""))


def _rest(case: Case, key: tuple[str, str], places: list[Place]) -> bool:
    """Whether TorchServe was asked to stop, or to start again.

    It can be told how many workers, but not which ones: it ends those that it started last, whoever is healthy. So it
    is asked only for a model of which no place is left; otherwise its tries are refused one by one at the slots, which
    it makes ever more seldom and ends after 300 s.
    """
    left = [p for p in places if (hold := case.holds.get(p.slot)) is None or hold.soon(case.now)]
    if not left:
        if key not in case.parked:
            case.parked.add(key)
            case.actions.append(ScaleModel(*key, 0))
        return True
    if key not in case.parked:
        return False
    if case.seen.scaled.get(key):
        case.parked.remove(key)
    elif case.now - case.tried.get(key, float("-inf")) >= WAKE_AGAIN:
        case.tried[key] = case.now
        case.actions.append(ScaleModel(*key, len(left)))
    return True


def _revive(case: Case, key: tuple[str, str], places: list[Place], java_since: float) -> None:
    wanted = {place.slot for place in places if place.slot not in case.holds}
    living = sum(worker.slot in wanted for worker in case.seen.workers)
    ends = [case.absent[slot].since for slot in wanted if slot in case.absent]
    last = max(case.seen.tried.get(key[0], 0.0), case.lost_loading.get(key[0], 0.0), java_since, *ends)
    if living < len(wanted) and case.now - max(last, case.tried.get(key, 0.0)) > GIVEN_UP:
        case.tried[key] = case.now
        case.actions.append(ReviveModel(*key, len(wanted), living, last))


def _learn(case: Case) -> None:
    """How long a batch may take, of models that can hang inside a client.

    Where all workers are others than then, the model may have been registered anew, with another timeout.
    """
    on_mps = {gpu.uuid for gpu in case.seen.gpus if gpu.daemon != "off"}
    ready: dict[str, set[ProcessId]] = {}
    for worker in case.seen.workers:
        if worker.ready and worker.gpu in on_mps and worker.model not in case.seen.busy:
            ready.setdefault(worker.model, set()).add(worker.process)
    for model, processes in ready.items():
        known, at = case.learnt.get(model, (frozenset(), 0.0))
        if not processes & known or (model in case.seen.unlearnt and case.now - at >= WAKE_AGAIN):
            case.learnt[model] = frozenset(processes), case.now
            case.actions.append(LearnTimeout(model))

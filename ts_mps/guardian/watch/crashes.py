"""Fault again and again: first a pause before a worker is started again, then its places are held back."""

from __future__ import annotations

from ts_mps.guardian.watch.case import Case
from ts_mps.holds import Hold

#: Seconds in which crashes are counted together.
WINDOW = 120.0
#: Crashes of all workers of a model on a GPU within the window after which its places there are held back: with four
#: workers twenty ends of single ones, or five faults of the server that the model began.
LIMIT = 5.0
#: As many, and the next worker waits; before that a worker comes back as fast as it can load.
PAUSE_FROM = 2.0
#: The longest pause, in seconds; a worker waits for it inside its LOAD.
LONGEST_PAUSE = 30.0
#: Seconds for which places are held back.
QUIET = 600.0


def crashed(case: Case, model: str, gpu: str | None, share: float, slot: int | None = None) -> None:
    """Count a crash, and hold back what crashes too often.

    Args:
        case: The judgement.
        model: Whose worker crashed.
        gpu: Where; None on the CPU.
        share: Of the model's workers on that GPU, the share that crashed: 1 for all of them.
        slot: The worker's place; None where all were struck.
    """
    recent = [(at, part) for at, part in case.crashes.get((model, gpu), ()) if at > case.now - WINDOW]
    recent.append((case.now, share))
    total = sum(part for _, part in recent)
    case.crashes[model, gpu] = tuple(recent)
    places = case.places_of(model, gpu)
    if total > LIMIT - 1e-6:
        del case.crashes[model, gpu]
        where = _where(case, gpu)
        reason = f"Model {model} crashed again and again {where} ({len(recent)} times within {WINDOW:.0f} s)."
        until = case.now + QUIET
        case.holds.update({p.slot: Hold(reason, until) for p in places if not _for_good(case, p.slot)})
        text = f"{reason} Its {len(places)} place(s) there are held back for {QUIET:.0f} s; the others serve on."
        case.say("held-back", text, gpu=gpu or "", model=model, cause="crash-loop")
        case.count("crash-loop", gpu or "")
    elif total > PAUSE_FROM - 1e-6:
        pause = min(LONGEST_PAUSE, 2 ** (total - PAUSE_FROM))
        reason = f"Its worker crashed {len(recent)} times within {WINDOW:.0f} s, so the next one waits {pause:.0f} s."
        for place in places:
            if slot in (None, place.slot) and place.slot not in case.holds:
                case.holds[place.slot] = Hold(reason, case.now + pause)


def _for_good(case: Case, slot: int) -> bool:
    """Whether the place is held back until its GPU is there again."""
    hold = case.holds.get(slot)
    return hold is not None and hold.until is None


def _where(case: Case, gpu: str | None) -> str:
    index = next((seen.index for seen in case.seen.gpus if seen.uuid == gpu), None)
    return "on the CPU" if index is None else f"on GPU {index}"

"""What one look means: memory and look in, memory, actions and events out. Nothing here touches the world.

What is done about each fault, and what was measured, is told in docs/explanation/faults.md.
"""

from __future__ import annotations

from ts_mps.guardian.watch.case import Case
from ts_mps.guardian.watch.comings import judge_batches, judge_workers
from ts_mps.guardian.watch.faults import judge_gpus, judge_told
from ts_mps.guardian.watch.memory import Judgement, Memory
from ts_mps.guardian.watch.places import judge_places
from ts_mps.guardian.watch.seen import Seen


def judge(memory: Memory, seen: Seen, now: float) -> Judgement:
    """Decide what to do.

    Args:
        memory: What the last judgement left.
        seen: This look.
        now: Seconds of time.monotonic().
    """
    case = Case(memory, seen, now)
    judge_gpus(case)
    if not seen.java:
        # Its workers leave by themselves, and when it is back all of them are new: nobody is to blame for that.
        case.absent, case.batches, case.parked = {}, {}, set()
        return case.done(java_since=None)
    java_since = now if memory.java_since is None else memory.java_since
    judge_told(case)
    judge_workers(case)
    judge_batches(case)
    judge_places(case, java_since)
    return case.done(java_since)

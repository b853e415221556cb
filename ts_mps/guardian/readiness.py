"""Whether an instance is ready, and whether its guardian is at work: judged from files alone.

Probes come every few seconds. So nothing here asks TorchServe (which starts one nvidia-smi per worker for an answer)
or a daemon (which serves one front-end at a time); what they said stands in the guardian's last look.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from ts_mps.guardian.state import State, guardian_lives, load_state
from ts_mps.guardian.watched import Watched, WatchedModel, load_watched
from ts_mps.paths import InstancePaths

#: Version of the JSON form.
READINESS_VERSION = 1
#: Seconds without a look after which the guardian counts as hung. Much longer: who asks will kill it for that.
HUNG_AFTER = 60.0


@dataclass(frozen=True)
class Seen:
    """What the files say.

    Attributes:
        state: The instance's last state; None if it has never been started here.
        watched: The guardian's last look; None if there was none.
        guardian: Whether a guardian holds the instance.
        java: Whether TorchServe's frontend lives.
        now: Seconds of time.monotonic().
    """

    state: State | None
    watched: Watched | None
    guardian: bool
    java: bool
    now: float

    @property
    def age(self) -> float | None:
        """Seconds since the last look; None if there was none since the start, or only one of an earlier boot."""
        if self.watched is None or self.watched.clock > self.now:
            return None
        return self.now - self.watched.clock

    @property
    def look(self) -> str:
        """ "fresh", "stale" or "missing"."""
        if self.watched is None or self.age is None:
            return "missing"
        return "fresh" if self.watched.fresh(self.now) else "stale"


def see(paths: InstancePaths) -> Seen:
    """Read the files.

    Raises:
        TsMpsError: The state is of a version that is not known here.
    """
    state = load_state(paths)
    java = state is not None and state.java is not None and state.java.alive()
    return Seen(state, load_watched(paths), guardian_lives(paths), java, time.monotonic())


def look_problem(seen: Seen) -> str:
    """The sentence for a look that cannot be believed; empty for a fresh one."""
    if seen.look == "fresh":
        return ""
    if seen.age is None:
        return "The guardian has not looked yet: whether workers are attached is not known."
    if not seen.guardian:
        return f"The guardian's last look is {seen.age:.0f} s old, for the guardian is gone."
    return f"The guardian's last look is {seen.age:.0f} s old, and it should look once a second."


def not_ready(seen: Seen, *, strict: bool = False) -> tuple[str, ...]:
    """Why nothing should be sent to it, a sentence each; empty if it is ready.

    Ready is an instance in which each model has a worker that serves: what is broken besides is repaired while the
    others serve on, and a fault that all instances meet must not take all of them away.

    Args:
        seen: What the files say.
        strict: Whether every planned worker has to be ready and attached.
    """
    if seen.state is None:
        return ("It has never been started.",)
    why = (seen.state.error or seen.state.why).removesuffix(".")
    phase = f"It is {seen.state.phase}{': ' + why if why else ''}."
    if seen.state.phase == "recovering":
        reasons = _reasons(seen, strict=strict)
        return (phase, *reasons) if reasons or strict else ()
    return (phase,) if seen.state.phase != "serving" else _reasons(seen, strict=strict)


def _reasons(seen: Seen, *, strict: bool) -> tuple[str, ...]:
    reasons = [] if seen.java else ["TorchServe is gone."]
    problem = look_problem(seen)
    if problem or seen.watched is None:
        return (*reasons, problem)
    if seen.java and not seen.watched.java:
        reasons.append("TorchServe was gone at the guardian's last look.")
    for model in seen.watched.models:
        reasons += _strict_reasons(model, changing=bool(seen.watched.changing)) if strict else _model_reasons(model)
    return tuple(reasons)


def _model_reasons(model: WatchedModel) -> list[str]:
    if model.attached or not model.planned:
        return []
    if model.ready:
        return [f"Model {model.name}: none of {model.ready} ready workers is in the client list of an MPS daemon."]
    return [f"Model {model.name}: none of {model.planned} planned workers is ready.", *_held(model)]


def _held(model: WatchedModel) -> list[str]:
    return [f"Model {model.name}: {count} held back: {why}" for why, count in model.held.items()]


def _strict_reasons(model: WatchedModel, *, changing: bool) -> list[str]:
    reasons = []
    # A change takes workers away one at a time on purpose; the others serve, and nobody has to look away for that.
    if model.ready < (min(1, model.planned) if changing else model.planned):
        reasons.append(f"Model {model.name}: {model.ready} of {model.planned} planned workers are ready.")
    if model.attached < model.ready:
        clients = f"{model.attached} of {model.ready} ready workers are"
        reasons.append(f"Model {model.name}: {clients} in the client list of an MPS daemon.")
    return reasons + _held(model)


def not_live(seen: Seen) -> tuple[str, ...]:
    """Why whoever asks should start the guardian again; empty while it is at work.

    During a start and a stop it is: both have time limits of their own, and neither is helped by a kill.
    """
    if not seen.guardian:
        return ("The guardian is gone.",)
    if seen.state is None or seen.state.phase not in ("serving", "recovering"):
        return ()
    silent = seen.now - max(seen.state.clock, seen.watched.clock if seen.watched else 0.0)
    if silent > HUNG_AFTER:
        return (f"The guardian has not looked for {silent:.0f} s, and it should look once a second.",)
    return ()


def as_json(seen: Seen) -> dict[str, Any]:
    """Everything as one JSON object."""
    state = seen.state
    return {
        "version": READINESS_VERSION,
        "instance": state.instance if state else None,
        "phase": state.phase if state else None,
        "since": state.since if state else None,
        "ready": not not_ready(seen),
        "not_ready": list(not_ready(seen)),
        "as_planned": not not_ready(seen, strict=True),
        "not_as_planned": list(not_ready(seen, strict=True)),
        "live": not not_live(seen),
        "not_live": list(not_live(seen)),
        "guardian": state.guardian.pid if state and state.guardian and seen.guardian else None,
        "java": state.java.pid if state and state.java and seen.java else None,
        "look": {"state": seen.look, "age_seconds": None if seen.age is None else round(seen.age, 3)},
        "watched": asdict(seen.watched) if seen.watched else None,
    }

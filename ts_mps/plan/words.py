"""How sentences of a plan write numbers."""

from __future__ import annotations

import math

from ts_mps.plan.facts import GpuFacts, ModelFacts


def gib(size: float) -> str:
    """Bytes as GiB, below one as MiB: exact enough that the figures of a sentence can be multiplied and compared."""
    value = size / 2**30
    if 0 < value < 1:
        return f"{size / 2**20:.0f} MiB"
    return f"{value:.1f} GiB" if value >= 10 else f"{value:.2f}".removesuffix("0") + " GiB"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th ..."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"


def workers(number: int) -> str:
    """1 worker, 2 workers."""
    return f"{number} worker{'' if number == 1 else 's'}"


def clients(number: int) -> str:
    """1 client, 2 clients."""
    return f"{number} client{'' if number == 1 else 's'}"


def rate(value: float) -> str:
    """Requests per second, with three digits at least."""
    return f"{value:,.0f}/s" if value >= 100 else f"{value:.3g}/s"


def percent(part: float) -> str:
    """A part of one as a percentage."""
    return f"{100 * part:.1f} %" if math.isfinite(part) else "everything"


def short(gpu: GpuFacts) -> str:
    """A GPU in the middle of a sentence."""
    return f"GPU {gpu.index}"


def title(model: ModelFacts, models: tuple[ModelFacts, ...]) -> str:
    """A model's name, with its version where another model has the same name."""
    twins = sum(other.name == model.name for other in models)
    return f"{model.name} {model.version}" if twins > 1 and model.version else model.name


def kept(attached: int, reserve: int) -> str:
    """What of a cap's clients is not for the plan, to follow "48 clients"."""
    parts = [f"{attached} {'is' if attached == 1 else 'are'} taken by others"] if attached else []
    parts += [f"{reserve} {'is' if reserve == 1 else 'are'} kept free (--reserve)"] if reserve else []
    return f" of which {' and '.join(parts)}" if parts else ""

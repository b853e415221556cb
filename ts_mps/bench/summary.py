"""From a study's runs to everything that is said of it. Nothing is measured here, and nothing is read but the study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ts_mps.bench.cautions import cautions
from ts_mps.bench.cells import cells
from ts_mps.bench.contrasts import best_contrasts, contrasts
from ts_mps.bench.figures import arm_figures, ceiling_of, costs, rates_found
from ts_mps.bench.findings import Contrast, Summary
from ts_mps.bench.headline import headline
from ts_mps.bench.records import Study
from ts_mps.bench.statistics import MARGIN, WORSE


def summarise(
    study: Study,
    *,
    margin: float = MARGIN,
    objective_ms: float | None = None,
    prices: Mapping[str, float] | None = None,
) -> Summary:
    """Everything that is said of a study; the same for the same study and arguments, down to the last digit.

    Args:
        study: It may have failed runs, too few blocks, one arm or no runs at all; the summary says so.
        margin: What is too small to matter, as a part above 0.
        objective_ms: Latency that an answer must not exceed to be goodput, and that the 99th percentile must not
            exceed for a rate to have held; None for the study's own (its setting "slo_ms"), if it has one.
        prices: Price per hour by an arm's name or its device; see ``figures.costs``.

    Raises:
        ValueError: The margin is not above 0, or a price is for nothing that the study has.
    """
    if not margin > 0:
        raise ValueError(f"a margin is above 0, not {margin}")
    objective = objective_ms if objective_ms is not None else study.settings.get("slo_ms")
    found = cells(study)
    compared = contrasts(found, margin)
    best = best_contrasts(found, margin)
    return Summary(
        headline=headline(study, found, best, compared),
        figures=tuple(arm_figures(cell, objective, ceiling_of(cell, found)) for cell in found if cell.runs),
        contrasts=compared,
        losses=_losses(study, (*compared, *best)),
        rates=() if objective is None else rates_found(found, objective),
        costs=costs(found, prices or {}),
        cautions=cautions(study, found, compared),
        best=best,
    )


def _losses(study: Study, judged: Iterable[Contrast]) -> tuple[Contrast, ...]:
    """Where an arm with MPS is worse than one without; the first of two contrasts of the same arms."""
    lost: dict[tuple[str, str, str, float], Contrast] = {}
    for one in judged:
        if one.verdict == WORSE and study.arm(one.arm).mps and not study.arm(one.baseline).mps:
            lost.setdefault((one.arm, one.baseline, one.kind, one.rate), one)
    return tuple(lost.values())

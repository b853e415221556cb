"""Runs and figures as CSV, for spreadsheets and notebooks: plain numbers, empty where there is none."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from typing import Any

from ts_mps.bench.cells import why_not
from ts_mps.bench.findings import Interval, Summary
from ts_mps.bench.histogram import percentile
from ts_mps.bench.records import Study

_PERCENTS = (50, 90, 95, 99, 99.9)


def runs_csv(studies: Mapping[str, Study]) -> str:
    """Every run of every study, failed ones too.

    Args:
        studies: File name -> study.
    """
    return _csv(row for source, study in studies.items() for row in _runs(source, study))


def figures_csv(summaries: Mapping[str, Summary]) -> str:
    """Every arm at every load.

    Args:
        summaries: File name -> what was found in its study.
    """
    return _csv(row for source, summary in summaries.items() for row in _figures(source, summary))


def _runs(source: str, study: Study) -> Iterator[dict[str, Any]]:
    for run in study.runs:
        arm, result = study.arm(run.arm), run.result
        counted = result is not None and bool(result.histogram.counts)
        busy = [sample.utilisation for sample in run.samples if sample.utilisation is not None]
        yield {
            "study": source,
            "block": run.block,
            "position": run.position,
            "arm": run.arm,
            "group": arm.group,
            "engine": arm.engine,
            "device": arm.device,
            "workers": arm.workers,
            "batch_size": arm.batch_size,
            "mps": arm.mps,
            "thread_percentage": arm.thread_percentage,
            "noop": arm.noop,
            "started": run.started,
            "counts": not why_not(run),
            "why_not": why_not(run),
            "load": result.load.kind if result else None,
            "rate": result.load.rate if result else None,
            "seconds": result.load.seconds if result else None,
            "requests_per_second": result.requests_per_second if result else None,
            "sent": result.sent if result else None,
            "answered": result.answered if result else None,
            "errors": sum(result.errors.values()) if result else None,
            **{f"p{p:g}_ms": percentile(result.histogram, p) if result and counted else None for p in _PERCENTS},
            "ready_seconds": run.ready_seconds,
            "clients": run.clients,
            "frontend_cores": run.frontend_cores,
            "worker_cores": run.worker_cores,
            "server_limit": run.server_limit,
            "generator_cores": result.generator_cores if result else None,
            "generator_limit": result.generator_limit if result else None,
            "gpu_utilisation": sum(busy) / len(busy) if busy else None,
        }


def _figures(source: str, summary: Summary) -> Iterator[dict[str, Any]]:
    for found in summary.figures:
        by = dict(found.percentiles)
        yield {
            "study": source,
            "arm": found.arm,
            "load": found.kind,
            "rate": found.rate,
            **_interval("requests_per_second", found.throughput),
            **_interval("goodput", found.goodput),
            **{f"p{percent:g}_ms": by.get(percent) for percent in _PERCENTS},
            "errors": found.errors,
            "gpu_utilisation": found.gpu_utilisation,
            "gpu_memory": found.gpu_memory,
            "frontend_cores": found.frontend_cores,
            "worker_cores": found.worker_cores,
            "generator_cores": found.generator_cores,
            "bottleneck": found.bottleneck,
            "runs": found.throughput.runs,
            "failed": found.failed,
        }


def _interval(name: str, found: Interval | None) -> dict[str, float | None]:
    return {
        name: found.middle if found else None,
        f"{name}_low": found.low if found else None,
        f"{name}_high": found.high if found else None,
    }


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    text = StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    # A spreadsheet runs a text that begins like a formula.
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t") and value else value

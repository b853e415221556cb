"""Why a study's figures should be read with care; each threshold stands here, and in the sentence that it brings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean, median, stdev

from ts_mps.bench import wording
from ts_mps.bench.cells import Cell, why_not
from ts_mps.bench.figures import (
    CORES_BUSY,
    FRONTEND_REACHED,
    GENERATOR_BUSY,
    ceiling_of,
    cores_share,
    generator_share,
)
from ts_mps.bench.findings import Caution, Contrast
from ts_mps.bench.records import Study
from ts_mps.bench.statistics import FEWEST

#: Standard deviation of an arm's throughputs, as a part of their mean, from which on six pairs can hardly tell 10 %.
UNSTABLE = 0.05
#: Part of a run's answers that one batch of each worker is, from which on it matters whether that batch was counted.
COARSE = 0.03
#: Part of an arm's samples of the GPU that may be throttled without a word.
THROTTLED = 0.05


def cautions(study: Study, found: Sequence[Cell], contrasts: Sequence[Contrast]) -> tuple[Caution, ...]:
    """Everything to be careful about: first the study as a whole, then arm by arm."""
    return (*_of_study(study, contrasts), *(caution for cell in found for caution in _of_cell(cell, found, study)))


def _of_study(study: Study, contrasts: Sequence[Contrast]) -> Iterator[Caution]:
    if study.incomplete:
        yield Caution("incomplete", "", f"The study was broken off: {study.incomplete}")
    yield from _quota(study)
    ran = {run.arm for run in study.runs}
    never = [arm.name for arm in study.arms if arm.name not in ran]
    if never:
        yield Caution("incomplete", "", f"Never run: {wording.listed(never)}.")
    few = [contrast for contrast in contrasts if contrast.ratio.runs < FEWEST]
    if few:
        least = min(contrast.ratio.runs for contrast in few)
        text = (
            f"{len(few)} of {wording.count(len(contrasts), 'comparison')} "
            f"{'stands' if len(few) == 1 else 'stand'} on fewer than {FEWEST} pairs of runs (the fewest on {least}). "
            "Nothing is claimed from them, and they have no interval."
        )
        yield Caution("too few pairs", "", text)


def _quota(study: Study) -> Iterator[Caution]:
    """A container's quota is of time, and does not keep server and generator apart as cores do."""
    quota, usable = study.machine.get("cpu_quota"), study.machine.get("usable_cores")
    if isinstance(quota, int | float) and isinstance(usable, int) and quota < usable:
        text = (
            f"The container may use {quota:g} cores' time, and server and generator were given {usable} cores: they "
            "may have taken time from each other. Give the container whole cores (docker --cpuset-cpus), or call "
            "ts-mps under taskset with as many as it may use."
        )
        yield Caution("starved of cores", "", text)


def _of_cell(cell: Cell, found: Sequence[Cell], study: Study) -> Iterator[Caution]:
    name, where = cell.arm.name, wording.load(cell.kind, cell.rate)
    if cell.failed:
        reasons = Counter(why_not(run) for run in cell.failed)
        told = " ".join(f"{text}{f' ({times} times)' if times > 1 else ''}" for text, times in reasons.items())
        runs = len(cell.runs) + len(cell.failed)
        yield Caution("failed runs", name, f"{len(cell.failed)} of {runs} runs ({where}) do not count. {told}")
    if not cell.runs:
        return
    errors = sum((Counter(dict(result.errors)) for result in cell.results), Counter[str]())
    if errors.total():
        sent = sum(result.sent for result in cell.results)
        kinds = wording.listed([f"{times:,} of {kind}" for kind, times in errors.most_common() if times])
        text = (
            f"{wording.share(errors.total() / sent) if sent else 'All'} of the requests ({where}) were not answered: "
            f"{kinds}. Latencies are those of the others."
        )
        yield Caution("errors", name, text)
    yield from _unstable(cell)
    yield from _coarse(cell)
    yield from _threads(cell, study)
    yield from _throttled(cell)
    yield from _limits(cell, found)


def _unstable(cell: Cell) -> Iterator[Caution]:
    rates = [result.requests_per_second for result in cell.results]
    # The throughput of an open loop is what was planned; its spread says nothing about the server.
    if cell.kind != "closed" or len(rates) < 3:
        return
    spread = stdev(rates) / fmean(rates)
    if spread > UNSTABLE:
        text = (
            f"Its throughput varies from run to run by {wording.share(spread)} (standard deviation; more than "
            f"{wording.share(UNSTABLE)} is unstable), from {wording.number(min(rates))} to "
            f"{wording.number(max(rates))} requests per second."
        )
        yield Caution("unstable", cell.arm.name, text)


def _coarse(cell: Cell) -> Iterator[Caution]:
    """Answers come batch by batch: a run that counts few of them counts one more or less by where it begins."""
    batches = cell.arm.workers * cell.arm.batch_size
    answered = median(result.answered for result in cell.results)
    if cell.kind == "closed" and not cell.arm.noop and batches > COARSE * answered:
        text = (
            f"A run counts about {answered:,.0f} answers, of which {batches:,} may come at once: "
            f"{wording.share(batches / answered)} of its throughput is where counting begins and ends. Longer runs "
            "would tell more."
        )
        yield Caution("coarse", cell.arm.name, text)


def _threads(cell: Cell, study: Study) -> Iterator[Caution]:
    """More threads that compute than cores: libgomp's wait for each other by spinning, on cores that others need."""
    arm, cores, environment = cell.arm, cell.runs[0].server_limit, study.machine.get("environment")
    if environment is None or arm.noop or cell.kind != "closed":
        return  # studies of earlier versions do not say what was set
    told = dict(variable.split("=", 1) for variable in environment).get("OMP_NUM_THREADS")
    if told is None and arm.engine == "ts-mps":
        return  # it divides the cores
    first = (told or "").partition(",")[0].strip()
    # libgomp ignores what is no number above 0, and takes as many threads as there are cores, as without it.
    threads = int(first) if first.isascii() and first.isdigit() and int(first) else cores
    if threads == 1 or arm.workers * threads <= cores:
        return
    why = "OMP_NUM_THREADS is not set" if told is None else f"OMP_NUM_THREADS is {told!r}"
    remedy = f"OMP_NUM_THREADS={max(1, cores // arm.workers)} would divide the cores"
    text = (
        f"Its {wording.count(arm.workers, 'worker')} may compute with {threads} threads each on "
        f"{wording.count(cores, 'core')}, as {why}: threads then wait for each other, above all where models load or "
        f"compute on the CPU. {'Without it ts-mps divides the cores' if arm.engine == 'ts-mps' else remedy}."
    )
    yield Caution("threads", arm.name, text)


def _throttled(cell: Cell) -> Iterator[Caution]:
    samples = [sample for run in cell.runs for sample in run.samples]
    held = [sample for sample in samples if sample.throttled]
    if samples and len(held) / len(samples) >= THROTTLED:
        reasons = dict.fromkeys(reason for sample in held for reason in sample.throttled)
        text = (
            f"The GPU's clocks were held down in {wording.share(len(held) / len(samples))} of the samples "
            f"({wording.load(cell.kind, cell.rate)}): {wording.listed(list(reasons))}."
        )
        yield Caution("throttled", cell.arm.name, text)


def _limits(cell: Cell, found: Sequence[Cell]) -> Iterator[Caution]:
    name, where = cell.arm.name, wording.load(cell.kind, cell.rate)
    generator = generator_share(cell)
    if generator >= GENERATOR_BUSY:
        text = (
            f"The load generator kept {wording.share(generator)} of its cores busy ({where}; from "
            f"{wording.share(GENERATOR_BUSY)} on it may be what was measured)."
        )
        yield Caution("generator", name, text)
    cores = cores_share(cell)
    if cores >= CORES_BUSY:
        text = (
            f"Server and workers kept {wording.share(cores)} of their cores busy ({where}; from "
            f"{wording.share(CORES_BUSY)} on workers wait for a core)."
        )
        yield Caution("starved of cores", name, text)
    ceiling = ceiling_of(cell, found)
    if ceiling is not None and cell.kind == "closed" and cell.throughput >= FRONTEND_REACHED * ceiling:
        text = (
            f"It reaches {wording.share(cell.throughput / ceiling)} of what the frontend does with a no-op handler "
            f"({wording.number(ceiling)} requests per second with as many workers and the same batch size; from "
            f"{wording.share(FRONTEND_REACHED)} on the frontend is the limit)."
        )
        yield Caution("frontend", name, text)

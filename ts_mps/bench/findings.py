"""What a study says, as data: made from its runs by ``ts_mps.bench.summary``, rendered by everything that shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A figure with its uncertainty.

    Attributes:
        middle: Median over the runs, or over the pairs of runs.
        low: Lower end of the 95 % bootstrap interval; the same as ``middle`` where there are too few runs for one.
        high: Its upper end.
        runs: How many runs, or pairs, it stands on.
    """

    middle: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class ArmFigures:
    """One arm at one load, over all its runs that count.

    Attributes:
        arm: Its name.
        kind: Of the load: "closed", "poisson" or "constant".
        rate: Planned arrivals per second of an open loop; 0 of a closed one.
        throughput: Requests per second.
        goodput: Requests per second answered within the objective; None without one.
        percentiles: (percentile, milliseconds) of the merged histograms: 50, 90, 95, 99, 99.9.
        errors: Part of the sent requests that were not answered, from 0 to 1.
        gpu_utilisation: Percent, mean over samples and runs; None where not known.
        gpu_memory: Most bytes in use on one GPU; None where not known.
        frontend_cores: Mean over the runs, as the next two.
        worker_cores: Of all workers together.
        generator_cores: Of the generator.
        bottleneck: What seems to limit it: "generator", "frontend", "host cores", "gpu" or "" where nothing stands out.
        failed: Runs that do not count.
    """

    arm: str
    kind: str
    rate: float
    throughput: Interval
    goodput: Interval | None
    percentiles: tuple[tuple[float, float], ...]
    errors: float
    gpu_utilisation: float | None
    gpu_memory: int | None
    frontend_cores: float
    worker_cores: float
    generator_cores: float
    bottleneck: str
    failed: int


@dataclass(frozen=True)
class Contrast:
    """One arm against another at the same load, paired by block.

    Attributes:
        arm: The arm that is judged.
        baseline: What it is judged against.
        kind: Of the load, as in :class:`ArmFigures`.
        rate: As there.
        measure: "throughput", or "p99" (milliseconds; lower is better).
        ratio: Of the arm's figure to the baseline's: median over the pairs.
        p: Two-sided exact permutation p of "no difference"; None where there are too few pairs.
        margin: What is too small to matter, as a part: 0.03.
        verdict: "better", "worse", "no difference" or "not decided"; only from six pairs on anything but the last.
        why: The verdict as a sentence with its figures.
    """

    arm: str
    baseline: str
    kind: str
    rate: float
    measure: str
    ratio: Interval
    p: float | None
    margin: float
    verdict: str
    why: str


@dataclass(frozen=True)
class Caution:
    """Why a figure should be read with care.

    Attributes:
        kind: "unstable", "coarse", "threads", "throttled", "starved of cores", "too few pairs", "generator",
            "frontend", "failed runs", "errors", "incomplete", "other machine" or "other workload".
        arm: The arm that it is about; empty for the whole study.
        text: A sentence with its figures.
    """

    kind: str
    arm: str
    text: str


@dataclass(frozen=True)
class Cost:
    """What requests cost on one arm.

    Attributes:
        arm: Its name.
        per_hour: Price of the machine per hour, as given.
        per_million: Price of a million requests at its throughput.
    """

    arm: str
    per_hour: float
    per_million: float


@dataclass(frozen=True)
class RateFound:
    """The largest open-loop rate at which an arm held its objective.

    Attributes:
        arm: Its name.
        rate: Requests per second that held; 0 if none did.
        broken: The lowest rate tried that did not hold; None if there is none.
        objective_ms: The 99th percentile that had to hold.
        behind: The lowest rate above ``rate``, and below ``broken``, at which the generator was too late to tell, so
            that what the arm does there is not known; None if there is none.
    """

    arm: str
    rate: float
    broken: float | None
    objective_ms: float
    behind: float | None = None


@dataclass(frozen=True)
class Summary:
    """Everything that is said of one study.

    Attributes:
        headline: The answer in one or two sentences: whether MPS pays here, by how much, and how sure that is.
        figures: Every arm at every load, in the order of the study.
        contrasts: Each MPS arm against the same without MPS; then every arm against the baseline.
        losses: Those of ``best`` and ``contrasts`` in which MPS loses to the lack of it.
        rates: Largest rates that held, where they were looked for.
        costs: Where prices were given.
        cautions: Everything to be careful about.
        best: For each group of arms the best cell with MPS against the best without, and, where there are several
            engines or devices, the best of each against the best of the other; the verdict to show first.
    """

    headline: str
    figures: tuple[ArmFigures, ...]
    contrasts: tuple[Contrast, ...]
    losses: tuple[Contrast, ...]
    rates: tuple[RateFound, ...]
    costs: tuple[Cost, ...]
    cautions: tuple[Caution, ...]
    best: tuple[Contrast, ...] = ()

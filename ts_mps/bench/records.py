"""What a study measured, as data: written by ``ts-mps bench compare``, read by everything that compares or renders.

The file is the single truth. It holds every run, failed ones too; medians, intervals and verdicts are made from it
anew each time and are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: Version of a study's JSON form; raised when a field changes its meaning.
STUDY_VERSION = 1


@dataclass(frozen=True)
class Arm:
    """One way to serve the model.

    Attributes:
        name: Unique in its study, and short enough for a table: "4 workers x 8, MPS on".
        workers: How many.
        batch_size: Most requests in a batch.
        mps: Whether its workers are MPS clients.
        thread_percentage: CUDA_MPS_ACTIVE_THREAD_PERCENTAGE of each in (0, 100]; None for no limit.
        engine: What serves: "ts-mps", "torchserve" (started as its users start it) or "litserve".
        device: "gpu" or "cpu".
        noop: Serves the no-op handler in place of the model: what the frontend itself can do.
        group: Arms of one group serve the same model; empty where the study has one model only.
        options: What else is set for this arm, by name, for people and for the engine: "max_batch_delay".
    """

    name: str
    workers: int
    batch_size: int
    mps: bool
    thread_percentage: float | None = None
    engine: str = "ts-mps"
    device: str = "gpu"
    noop: bool = False
    group: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """What was sent.

    Attributes:
        kind: "closed": so many connections, each with one request in flight; "poisson" or "constant": arrivals planned
            ahead, whether answers come or not.
        connections: Of a closed loop, all processes together; 0 of an open one.
        rate: Planned arrivals per second of an open loop; 0 of a closed one.
        seconds: Counted time.
        warm_up: Seconds of the same load before it.
        seed: Of the planned arrivals and of the order of payloads.
    """

    kind: str
    connections: int
    rate: float
    seconds: float
    warm_up: float
    seed: int


@dataclass(frozen=True)
class Histogram:
    """Latencies, counted by bucket; see ``ts_mps.bench.histogram`` for what a bucket spans.

    Attributes:
        counts: (bucket, how many), ascending by bucket, without empty ones.
    """

    counts: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class LoadResult:
    """What the generator saw in the counted time.

    Attributes:
        load: What was asked for.
        sent: Requests sent.
        answered: Answers of status 200 that passed the check.
        errors: Other ends of a request, by status ("503", "507"), "connection", "timeout" or "wrong answer".
        first_errors: The beginning of the first of each, by the same names.
        histogram: Latencies of the answered ones: from the first byte sent, in an open loop from the planned instant,
            to the last byte received.
        per_second: Answers in each counted second, in order.
        generator_cores: Cores that the generator kept busy, on average.
        generator_limit: Cores that it could have used.
        behind_ms: 99th percentile of how late an open loop sent; 0 of a closed one.
        void: Why these figures do not count, as a sentence; empty if they do.
        compared: Answers that were compared with a recorded one, byte by byte or as numbers; 0 without such a check.
        began: When counting began, in seconds since the epoch; 0 where nobody noted it.
    """

    load: Load
    sent: int
    answered: int
    errors: Mapping[str, int]
    first_errors: Mapping[str, str]
    histogram: Histogram
    per_second: tuple[int, ...]
    generator_cores: float
    generator_limit: int
    behind_ms: float = 0.0
    void: str = ""
    compared: int = 0
    began: float = 0.0

    @property
    def requests_per_second(self) -> float:
        """Answered requests per second."""
        return self.answered / self.load.seconds

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> LoadResult:
        """Read ``dataclasses.asdict`` of a result back.

        Raises:
            KeyError: A field is missing.
            TypeError: One is of another kind, or unknown.
        """
        counts = tuple((int(bucket), int(count)) for bucket, count in value["histogram"]["counts"])
        return LoadResult(
            **{
                **value,
                "load": Load(**value["load"]),
                "histogram": Histogram(counts),
                "per_second": tuple(value["per_second"]),
            }
        )


@dataclass(frozen=True)
class GpuSample:
    """One GPU at one instant; None where NVML does not say.

    Attributes:
        at: Seconds since the counted time began.
        gpu: UUID.
        utilisation: Percentage of the last sample period in which a kernel ran (NVML's utilization.gpu).
        memory: Bytes in use.
        sm_clock: MHz.
        temperature: Degrees Celsius.
        power: Watts.
        throttled: Names of the reasons that hold the clocks down, idleness left out.
    """

    at: float
    gpu: str
    utilisation: int | None
    memory: int | None
    sm_clock: int | None
    temperature: int | None
    power: float | None
    throttled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One arm in one block: a fresh server, a warm-up, one load.

    Attributes:
        block: Number of the block, from 0; the arms of a block are compared with each other.
        position: Its turn within the block, from 0; the order is drawn for each block.
        arm: Name of the arm.
        started: When, ISO 8601 with the zone.
        result: What the generator saw; None where the run did not get so far.
        ready_seconds: From the start's first instant until all workers served.
        clients: Workers that were proven MPS clients, before the load and after it: the smaller number.
        frontend_cores: Cores that TorchServe's Java, or LitServe without its workers, kept busy while counted.
        worker_cores: The same of all workers together.
        server_limit: Cores that server and workers could use.
        samples: GPUs while counted.
        failure: Why there is no result, or why it does not count, as a sentence; empty if it counts.
        details: The end of the logs of a failure.
    """

    block: int
    position: int
    arm: str
    started: str
    result: LoadResult | None
    ready_seconds: float = 0.0
    clients: int = 0
    frontend_cores: float = 0.0
    worker_cores: float = 0.0
    server_limit: int = 0
    samples: tuple[GpuSample, ...] = ()
    failure: str = ""
    details: str = ""

    @property
    def counts(self) -> bool:
        """Whether its figures may be used."""
        return not self.failure and self.result is not None and not self.result.void


@dataclass(frozen=True)
class Study:
    """Everything that one call of ``ts-mps bench`` measured.

    Attributes:
        title: What was asked, as a line.
        kind: "compare", "torchserve-guide", "databricks" or "vivo".
        workload: What was served and sent: name, model, payload sizes, batch delay, check.
        arms: All arms, the baseline first.
        blocks: How many blocks were planned.
        seed: From which orders, arrivals and payloads were drawn.
        machine: Where: host, cores and their division, memory, GPUs with driver, CUDA, clocks, versions, git commit.
        settings: The command line's values.
        runs: In the order in which they were run.
        started: When, ISO 8601 with the zone.
        incomplete: Why it was broken off, as a sentence; empty if it was not.
    """

    title: str
    kind: str
    workload: Mapping[str, Any]
    arms: tuple[Arm, ...]
    blocks: int
    seed: int
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    runs: tuple[Run, ...]
    started: str
    incomplete: str = ""

    def arm(self, name: str) -> Arm:
        """The arm of this name.

        Raises:
            KeyError: There is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)

    def as_json(self) -> dict[str, Any]:
        """The study's JSON form."""
        return {"version": STUDY_VERSION, **asdict(self)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Study:
        """Read the JSON form back.

        Raises:
            ValueError: It is of another version, or is not a study.
        """
        if value.get("version") != STUDY_VERSION:
            raise ValueError(f"it is of version {value.get('version')}, this ts-mps reads version {STUDY_VERSION}")
        try:
            fields = {name: value[name] for name in Study.__dataclass_fields__}
            fields["arms"] = tuple(Arm(**arm) for arm in value["arms"])
            fields["runs"] = tuple(_run(run) for run in value["runs"])
            return Study(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is not a study: {error}") from error


def _run(value: Mapping[str, Any]) -> Run:
    samples = tuple(GpuSample(**{**sample, "throttled": tuple(sample["throttled"])}) for sample in value["samples"])
    result = None if value["result"] is None else LoadResult.from_json(value["result"])
    return Run(**{**value, "samples": samples, "result": result})

"""Published studies, as data: what ``ts-mps bench compare --reproduce`` measures again.

The first is this project's own, of docs/results.md. Of the others' the machines are not at hand, so it is their
question that is asked again, on the present GPU. Where a definition departs from the original beyond that, it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ts_mps.bench.arms import ENGINES, make_arm
from ts_mps.bench.compare import connections_for
from ts_mps.bench.load.workloads import TINY, Workload, workload
from ts_mps.bench.records import Arm

#: Seconds that a run is thought to take beside its load: to start a server, to prove, to end it.
_AROUND_S = 20.0
_TINY_S, _TINY_WARM_UP_S, _TINY_CONNECTIONS = 1.0, 0.5, 8


@dataclass(frozen=True)
class Ground:
    """Where a reproduction is made.

    Attributes:
        tiny: On the CPU with tiny models and short loads: shows that all works, and nothing about MPS.
        cores: Host cores of the servers.
    """

    tiny: bool
    cores: int


@dataclass(frozen=True)
class Planned:
    """One study of a reproduction.

    Attributes:
        name: Of its file, and for ``--part``.
        title: For people.
        workload: What is served and sent.
        arms: What is compared, the likeliest baseline first.
        blocks: How many.
        seconds: Counted time of a load.
        warm_up: Seconds of the same load before it.
        connections: Of the closed loop.
    """

    name: str
    title: str
    workload: Workload
    arms: tuple[Arm, ...]
    blocks: int
    seconds: float
    warm_up: float
    connections: int

    @property
    def runs(self) -> int:
        """How many runs its blocks have."""
        return self.blocks * len(self.arms)

    @property
    def expected_seconds(self) -> float:
        """About how long it takes."""
        return self.runs * (_AROUND_S + self.warm_up + self.seconds)


#: Workload of :func:`results` -> its batch size, and the counted time of a load in seconds.
_RESULTS: Mapping[str, tuple[int, float]] = {
    "text": (32, 5.0),
    "ranking": (4, 5.0),
    "images": (32, 5.0),
    # Its answers come batch by batch, so that a short load would count one batch more or less.
    "generation": (32, 6.0),
}
_RESULTS_WARM_UP_S = 2.0


def results(ground: Ground) -> tuple[Planned, ...]:
    """The studies of docs/results.md, one for each workload, in which every engine serves the same archive.

    Stock TorchServe with one worker and with four, which its users would try first; ts-mps with four, MPS off and on;
    and LitServe with as many, MPS off and on.
    """
    planned = []
    many = 2 if ground.tiny else 4
    for name, (size, seconds) in _RESULTS.items():
        served = _workload(name, ground)
        batch = served.batch_sizes[-1] if ground.tiny else size
        ours, stock, lit = (_maker(ground, served, engine) for engine in ENGINES)
        arms = [stock(1, batch), stock(many, batch)]
        arms += [make(many, batch, mps=mps) for make in (ours, lit) for mps in (False, True)]
        title = f"{served.title}: MPS on against off, in three engines"
        planned.append(_planned(ground, name, title, served, arms, seconds=seconds, warm_up=_RESULTS_WARM_UP_S))
    return tuple(planned)


def torchserve_guide(ground: Ground) -> tuple[Planned, ...]:
    """ "Running TorchServe with NVIDIA MPS" (docs/hardware_support/nvidia_mps.md of pytorch/serve).

    BERT-base for sequence classification; one worker over batch sizes, two with and without MPS over the same; 600
    requests at once; the median of six runs, where the guide has five: fewer pairs allow no verdict. It is served by
    stock TorchServe with a handler as the guide's is; a second study serves the same weights by this project's handler.
    Both compute in fp32, as the guide's does.

    The guide sends 10,000 requests for each figure, here a load lasts some seconds. Its GPUs were those of G4 and P3
    instances, in exclusive-process mode for the runs under MPS; here no setting of the GPU is changed. The example that
    it served pads to 150 tokens, computes gradients and prints the scores of every batch; here it is 128 tokens, and
    neither of the others.
    """
    texts = _workload("texts", ground)
    texts = replace(texts, settings={**texts.settings, "batching.dtype": "fp32"})
    batches = (1, 4) if ground.tiny else (1, 2, 4, 8, 16, 32)
    studies = (
        (
            "guide-stock",
            "stock TorchServe, the guide's kind of handler",
            "torchserve",
            "benchmarks/naive/text_classifier.py",
        ),
        ("guide-ts-mps", "ts-mps and its handler", "ts-mps", ""),
    )
    planned = []
    for name, words, engine, handler in studies:
        served = replace(texts, handler=handler)
        make = _maker(ground, served, engine)
        arms = [make(1, batch) for batch in batches]
        arms += [make(2, batch, mps=mps) for batch in batches for mps in (False, True)]
        arms += [make(workers, batches[-1], noop=True) for workers in (1, 2)]
        title = f"TorchServe's MPS guide: BERT-base, {words}"
        planned.append(_planned(ground, name, title, served, arms, connections=600))
    return tuple(planned)


#: Shape of Qwen2.5 -> preset of handlers/build/text_generator.py.
_SHAPES: Mapping[str, str] = {size: f"qwen2.5-{size}" for size in ("0.5b", "1.5b", "3b", "7b")}
#: Requests in flight in one batch of the one engine; each of two engines has half of them.
_DATABRICKS_BATCH = 16


@dataclass(frozen=True)
class _Share:
    """A request of :func:`databricks`: tokens in and out; the counted time of a load, and its warm-up."""

    name: str
    tokens: int
    generated: int
    seconds: float = 10.0
    warm_up: float = 5.0


_SHARES = (
    _Share("prefill-128", 128, 1),
    _Share("prefill-512", 512, 1),
    _Share("prefill-2048", 2_048, 1, seconds=20.0),
    # A batch takes seconds, and answers come batch by batch: a short load would count one batch more or less.
    _Share("decode", 64, 256, seconds=60.0, warm_up=15.0),
)
_TINY_SHARES = (_Share("prefill-32", 32, 1), _Share("decode", 16, 8))


def databricks(ground: Ground) -> tuple[Planned, ...]:
    """ "Scaling small LLMs with NVIDIA MPS" (databricks.com/blog/scaling-small-llms-nvidia-mps).

    Two engines against one on the same GPU, the batch divided between them: the Qwen2.5 family by size of the model and
    length of the context, prefill-heavy (one token out) and decode-heavy. The blog found gains up to 3B and below 2,000
    tokens of context, and for prefill alone below 3B.

    Servers made for LLMs let new requests join a batch that runs; here a worker decodes one batch to its end, and the
    next one waits, which leaves more of a GPU idle. Weights are random: they cost the same and say nothing sensible, so
    answers are checked for their status alone.
    """
    generation = _workload("generation", ground)
    batch = 4 if ground.tiny else _DATABRICKS_BATCH
    planned = []
    for size, preset in {"tiny": "tiny"}.items() if ground.tiny else _SHAPES.items():
        for share in _TINY_SHARES if ground.tiny else _SHARES:
            settings = {
                **generation.settings,
                "batching.max_instances": batch,
                "batching.lengths": [share.tokens],
                "handler.max_new_tokens": share.generated,
                "handler.default_max_tokens": share.generated,
            }
            served = replace(
                generation,
                preset=preset,
                settings=settings,
                sizes={"tokens": share.tokens, "generated": share.generated},
                batch_sizes=(batch // 2, batch),
                check="status",
            )
            make = _maker(ground, served)
            arms = [make(1, batch), make(2, batch // 2), make(2, batch // 2, mps=True)]
            title = f"Two engines against one: Qwen2.5-{size}, {share.tokens} tokens in, {share.generated} out"
            name = f"databricks-{size}-{share.name}"
            planned.append(_planned(ground, name, title, served, arms, seconds=share.seconds, warm_up=share.warm_up))
    return tuple(planned)


def vivo(ground: Ground) -> tuple[Planned, ...]:
    """Ranking at vivo: 2,000 candidates in each request, workers under MPS on one GPU against servers without a GPU.

    Published were 218 requests per second at a batch size of 2,000, better than TensorRT with a divided graph, and
    costs that are 75 % lower than on CPUs (a talk at DataFunSummit). The model here is a DLRM with random weights, and
    2,000 candidates come in one request; what a request costs depends on prices, which ``ts-mps bench report --price``
    is given.

    Arms on the CPU make no batches: 2,000 candidates fill a core as they are, and a request need not wait for others.
    """
    ranking = _workload("ranking", ground)
    batch = ranking.batch_sizes[-1]
    gpu, cpu = _maker(ground, ranking), _maker(replace(ground, tiny=True), ranking)
    on_cpu = [cpu(workers, 1) for workers in sorted({1, max(1, ground.cores // 2), ground.cores})]
    on_gpu = [gpu(1, batch)] + [
        made for workers in (4, 8) for made in (gpu(workers, batch, mps=True), gpu(workers, batch, noop=True))
    ]
    arms = [cpu(1, batch), *on_cpu] if ground.tiny else [*on_gpu, *on_cpu]
    return (
        _planned(ground, "vivo-ranking", "Ranking 2,000 candidates: workers on the GPU and on the CPU", ranking, arms),
    )


#: Name -> its studies.
REPRODUCTIONS: Mapping[str, Callable[[Ground], tuple[Planned, ...]]] = {
    "results": results,
    "torchserve-guide": torchserve_guide,
    "databricks": databricks,
    "vivo": vivo,
}


def _workload(name: str, ground: Ground) -> Workload:
    return workload(name + TINY if ground.tiny else name)


def _maker(ground: Ground, served: Workload, engine: str = "ts-mps") -> Callable[..., Arm]:
    """Makes arms of a workload: on the GPU, or on the CPU without MPS where the ground is tiny."""

    def make(workers: int, batch: int, *, mps: bool = False, noop: bool = False) -> Arm:
        return make_arm(
            workers,
            batch,
            mps=mps and not ground.tiny,
            noop=noop,
            engine=engine,
            device="cpu" if ground.tiny else "gpu",
            options={"max_batch_delay": str(served.max_batch_delay)},
        )

    return make


def _planned(
    ground: Ground,
    name: str,
    title: str,
    served: Workload,
    arms: Sequence[Arm],
    *,
    blocks: int = 6,
    seconds: float = 10.0,
    warm_up: float = 5.0,
    connections: int = 0,
) -> Planned:
    # Without MPS some arms are the same; each is measured once.
    different = tuple({arm.name: arm for arm in arms}.values())
    if ground.tiny:
        title, blocks, seconds = f"{title} (tiny, on the CPU)", 1, _TINY_S
        return Planned(name, title, served, different, blocks, seconds, _TINY_WARM_UP_S, _TINY_CONNECTIONS)
    return Planned(name, title, served, different, blocks, seconds, warm_up, connections or connections_for(different))

"""The rows of the table: what is served, how, and what ratio is wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: Requests in flight, in batches of each worker: enough that a full batch always waits.
_DEPTH = 4


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        number: Of the row.
        title: What is served, for people.
        model: Name of the handler, of its build script and of its naive counterpart.
        preset: The build script's.
        input: What is sent, a name of ``bodies.make``.
        workers: Of each model.
        batch: batchSize of each.
        mps: Whether the workers run under MPS.
        wanted: Least ratio of our requests/s to the naive handler's.
        settings: More keys of model-config.yaml for both sides.
        stretch: Bursts are so many times as long, where batches are slow.
        ceiling: Whether to measure the no-op handler and the bare loop as well.
    """

    number: int
    title: str
    model: str
    preset: str
    input: str
    workers: int
    batch: int
    mps: bool
    wanted: float
    settings: tuple[str, ...] = ("batching.dtype=fp16",)
    stretch: float = 1.0
    ceiling: bool = False

    @property
    def connections(self) -> int:
        """Connections that keep all workers' batches full."""
        return self.workers * self.batch * _DEPTH

    def for_cpu(self) -> Row:
        """The same in small, to try it without a GPU."""
        return replace(
            self,
            preset="tiny",
            workers=1,
            batch=min(self.batch, 4),
            mps=False,
            stretch=1.0,
            settings=tuple(one.replace("fp16", "fp32") for one in self.settings),
        )


#: A whole batch in one run, prompts of 64 without padding, and 32 tokens for everyone, as the naive side generates.
_GENERATOR = (
    "batching.dtype=fp16",
    "batching.max_instances=32",
    "batching.lengths=[64]",
    "handler.max_new_tokens=32",
    "handler.default_max_tokens=32",
    "handler.stop_token_ids=[]",
)

ROWS = (
    Row(1, "BERT-base, 128 token ids", "text_classifier", "bert-base", "ids", 1, 8, False, 4.0, ceiling=True),
    Row(2, "BERT-base, 128 token ids", "text_classifier", "bert-base", "ids", 4, 8, True, 2.5, ceiling=True),
    Row(3, "BERT-base, texts of 128 tokens", "text_classifier", "bert-base", "texts", 4, 32, True, 2.0),
    Row(4, "DLRM, 2,000 candidates", "ranker", "dlrm", "candidates", 1, 4, False, 2.0, settings=()),
    Row(5, "ResNet-18, JPEG of 500 x 375", "image_classifier", "resnet-18", "photos", 4, 8, True, 2.0),
    Row(
        6,
        "Qwen2.5-0.5B, 64 in, 32 out",
        "text_generator",
        "qwen2.5-0.5b",
        "prompts",
        1,
        32,
        False,
        5.0,
        _GENERATOR,
        3.0,
    ),
)

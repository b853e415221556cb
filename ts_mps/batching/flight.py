"""One run of a text generator in flight: what the host keeps of it from its launch to its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ts_mps.batching.batch import Results
from ts_mps.batching.gather import Chunk
from ts_mps.batching.instances import Array
from ts_mps.batching.sampling import Wish
from ts_mps.batching.staging import HostBlock, Layout


class HostSlot:
    """The host memory of one run; the next run but one uses it again.

    Args:
        steps: Most tokens of a row.
        rows: Of the largest batch.
        ahead: How many steps the device may be ahead of the host.
        pinned: Whether a GPU copies from it and to it.

    Attributes:
        inputs: What the device is sent.
        tokens_out: int64 [steps, rows], what the device chose; -1 where the logits were not finite.
        tokens: The same memory as an array.
        filled: After the inputs were copied to the device; None on the CPU.
        written: After step n came back, at n modulo their number; empty on the CPU.
    """

    def __init__(self, steps: int, rows: int, *, ahead: int, pinned: bool) -> None:
        self.inputs = HostBlock(pinned=pinned)
        self.tokens_out = torch.full((steps, rows), -1, dtype=torch.int64, pin_memory=pinned)
        self.tokens: Array = self.tokens_out.numpy()
        self.filled = torch.cuda.Event() if pinned else None
        self.written = [torch.cuda.Event() for _ in range(ahead + 1)] if pinned else []


@dataclass(eq=False)
class Run:
    """One run: filled, then begun on the device, then followed to its end.

    Args:
        finish: Follows it to its end.
        slot: Its host memory.
        chunk: Its instances.
        layout: Of its inputs.
        wishes: One for each instance.
        prompt_tokens: int64 [instances].
        launched: How many steps were queued on the device.
        missed: Whether a stage of it had no graph.
        error: What went wrong when it was begun.

    Attributes:
        sampled: Whether any row draws its tokens.
        steps: Most tokens that any row wants.
    """

    finish: Callable[[Run], Results]
    slot: HostSlot
    chunk: Chunk
    layout: Layout
    wishes: list[Wish]
    prompt_tokens: Array
    launched: int = 0
    missed: bool = False
    error: BaseException | None = None
    sampled: bool = field(init=False)
    steps: int = field(init=False)

    def __post_init__(self) -> None:
        self.sampled = any(wish.sampled for wish in self.wishes)
        self.steps = max(wish.max_tokens for wish in self.wishes)

    def wait(self) -> Results:
        """The tokens of all rows."""
        return self.finish(self)

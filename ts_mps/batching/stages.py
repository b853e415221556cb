"""What a text generator computes on the device: the stages of a run, each of which can be one CUDA graph.

Prompts are padded on the left, so that all rows of a run write the same slot at each step; the slot is a number on the
device, so that one graph serves all steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ts_mps.batching.batch import LENGTHS
from ts_mps.batching.decoder import Attention, Decoder, pairs
from ts_mps.batching.grid import Grid, Shape
from ts_mps.batching.memory import Memory, Sizes
from ts_mps.batching.sampling import draw, most_probable


@dataclass(frozen=True)
class Prefill:
    """The part of a run that reads the prompts: [rows, length]; ``full`` if none of them is padded."""

    rows: int
    length: int
    full: bool


@dataclass(frozen=True)
class Decode:
    """One step of all rows, attending over the first ``span`` slots."""

    rows: int
    span: int


@dataclass(frozen=True)
class Pick:
    """Choosing the next tokens; ``sampled`` if some rows draw theirs."""

    rows: int
    sampled: bool


#: A part of a run that is one graph.
Stage = Prefill | Decode | Pick


def stages_of(grid: Grid, sizes: Sizes) -> list[Stage]:
    """Every stage of every shape that fits, the largest first, so that graphs reserve their memory once.

    Args:
        grid: The shapes, and the limits as they are now.
        sizes: Of the memory that the stages work on.
    """
    shapes = [shape for shape in grid.shapes() if shape.rows <= grid.cap(shape.length)]
    found: dict[Stage, None] = {Prefill(shape.rows, shape.length, shape.full): None for shape in shapes}
    for shape in shapes:
        for needed in range(shape.length + 1, shape.length + sizes.new_tokens):
            found[Decode(shape.rows, sizes.span(shape.rows, needed))] = None
    for sampled in (True, False):
        found.update({Pick(shape.rows, sampled): None for shape in shapes})
    return list(found)


class Computation:
    """Computes stages, on the current stream; they read and write the memory that they share, and nothing else.

    Args:
        decoder: The model, on the device.
        memory: On the same device.
    """

    def __init__(self, decoder: Decoder, memory: Memory) -> None:
        self._decoder = decoder
        self._memory = memory
        self._sizes = memory.sizes

    def compute(self, stage: Stage) -> None:
        """Compute a stage: what it reads was written by the one before it, or came with the inputs."""
        if isinstance(stage, Prefill):
            self._prefill(stage)
        elif isinstance(stage, Decode):
            self._decode(stage)
        else:
            self._pick(stage)

    def try_out(self, stage: Stage) -> None:
        """Compute a stage on zeros, with one token for each row where the prompts are padded."""
        memory = self._memory
        memory.inputs.zero_()
        for state in (memory.pad, memory.slot, memory.step):
            state.zero_()
        if isinstance(stage, Prefill):
            lengths = self._inputs(stage.rows, stage.length)[LENGTHS]
            lengths.fill_(stage.length if stage.full else 1)
        self.compute(stage)

    def _prefill(self, stage: Prefill) -> None:
        rows, length, memory = stage.rows, stage.length, self._memory
        inputs = self._inputs(rows, length)
        pad = memory.pad[:rows]
        pad.copy_(length - inputs[LENGTHS])
        memory.slot.fill_(length)
        memory.step.zero_()
        cache = self._cache(rows)
        # What an earlier run left there is masked, but NaN times 0 is NaN.
        cache[..., length:, :].zero_()
        slots = torch.arange(length, device=pad.device)
        mask = None
        if not stage.full:
            before = slots[None, :] <= slots[:, None]
            # Padding sees itself, as a query that sees nothing at all would compute NaN.
            seen = (before & (slots >= pad[:, None])[:, None, :]) | (slots[None, :] == slots[:, None])
            mask = self._additive(seen)[:, None]
        positions = (slots - pad[:, None]).clamp_min(0)
        memory.logits[:rows].copy_(self._decoder(inputs["input_ids"], positions, Attention(pairs(cache), mask)))

    def _decode(self, stage: Decode) -> None:
        rows, memory = stage.rows, self._memory
        pad, slots = memory.pad[:rows, None], torch.arange(stage.span, device=memory.pad.device)
        mask = self._additive((slots >= pad) & (slots <= memory.slot))[:, None, None]
        attention = Attention(pairs(self._cache(rows)), mask, memory.slot)
        memory.logits[:rows].copy_(self._decoder(memory.token[:rows, None], memory.slot - pad, attention))
        memory.slot.add_(1)

    def _pick(self, stage: Pick) -> None:
        rows, memory = stage.rows, self._memory
        logits = memory.logits[:rows]
        token, sound = most_probable(logits)
        if stage.sampled:
            inputs = self._inputs(rows, self._sizes.grid.lengths[0])  # the controls are in one place for all lengths
            temperature = inputs["temperature"]
            uniform = inputs["uniforms"].index_select(1, memory.step).squeeze(1)
            drawn = draw(logits, temperature, inputs["top_k"], inputs["top_p"], uniform)
            token = torch.where(temperature > 0, drawn, token)
        # Logits may be wider than the vocabulary, and an id outside of it would end the whole process.
        memory.token[:rows].copy_(token.clamp_max(self._decoder.vocabulary - 1))
        memory.told[:rows].copy_(token.masked_fill(~sound, -1))
        memory.step.add_(1)

    def _inputs(self, rows: int, length: int) -> dict[str, torch.Tensor]:
        return self._sizes.layout(Shape(rows, length)).views(self._memory.inputs)

    def _cache(self, rows: int) -> torch.Tensor:
        return self._memory.cache.view(rows, self._sizes.slots(rows))

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        """A mask to add to scores: made once here, where a bool one is converted again in each layer."""
        return torch.zeros_like(seen, dtype=self._memory.logits.dtype).masked_fill_(~seen, float("-inf"))

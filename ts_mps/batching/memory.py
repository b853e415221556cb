"""The device memory that all runs of a text generator share, and how much of it each shape gets.

It never moves once it is allocated, as CUDA graphs hold its addresses.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ts_mps.batching.decoder import Cache, Decoder
from ts_mps.batching.grid import Grid, Shape
from ts_mps.batching.staging import Layout, input_layout
from ts_mps.batching.warming import fit

#: Cache slots come in multiples of this, as the attention's kernels like it, and decode graphs in its powers of two.
_SLOTS = 64


@dataclass(frozen=True)
class Sizes:
    """How much memory each shape gets: pure arithmetic.

    Args:
        grid: The shapes.
        caps: Its limits by length, as they were when the memory was allocated; later they may shrink.
        new_tokens: Most tokens that any row is continued by.
    """

    grid: Grid
    caps: Mapping[int, int]
    new_tokens: int

    @staticmethod
    def of(grid: Grid, new_tokens: int) -> Sizes:
        """The sizes for a grid's limits as they are now."""
        return Sizes(grid, {length: grid.cap(length) for length in grid.lengths}, new_tokens)

    @property
    def rows(self) -> int:
        """Rows of the largest batch."""
        return max(self.caps.values())

    @property
    def largest(self) -> tuple[int, int]:
        """Rows and length of the shape that takes most of the cache."""
        return max(((cap, length) for length, cap in self.caps.items()), key=lambda shape: self.cells(shape[0]))

    def cells(self, rows: int) -> int:
        """Cache slots of so many rows together."""
        return rows * self.slots(rows)

    def slots(self, rows: int) -> int:
        """Slots of each row in runs of so many rows: for the longest prompt that they may have, and its answer."""
        longest = max(length for length, cap in self.caps.items() if cap >= rows)
        return -(-(longest + self.new_tokens) // _SLOTS) * _SLOTS

    def span(self, rows: int, needed: int) -> int:
        """Over how many slots a step attends that needs the first ``needed``."""
        span = _SLOTS
        while span < needed:
            span *= 2
        return min(span, self.slots(rows))

    def layout(self, shape: Shape) -> Layout:
        """The inputs of one shape; the controls come first, so that their place does not depend on the length."""
        rows = shape.rows
        controls = {
            "temperature": (torch.float32, (rows,)),
            "top_k": (torch.int64, (rows,)),
            "top_p": (torch.float32, (rows,)),
            "uniforms": (torch.float32, (rows, self.new_tokens)),
        }
        prompts = input_layout(self.grid, Shape(rows, shape.length, full=False))
        return Layout.of({**controls, **{one.name: (one.dtype, one.shape) for one in prompts.fields}})


@dataclass(frozen=True, eq=False)
class Memory:
    """Everything on the device that the stages of a run read and write, for the largest batch.

    Args:
        sizes: What it was allocated for.
        cache: Keys and values.
        inputs: uint8, prompts and controls as the host sent them, laid out by ``sizes.layout``.
        logits: [rows, outputs], after the last token.
        token: int64 [rows], the tokens that were chosen, which the next step reads.
        told: int64 [rows], the same for the host; -1 where the logits were not finite.
        pad: int64 [rows], slots on the left that hold padding.
        slot: int64 [1], the slot that the next step writes.
        step: int64 [1], how many tokens were chosen.
    """

    sizes: Sizes
    cache: Cache
    inputs: torch.Tensor
    logits: torch.Tensor
    token: torch.Tensor
    told: torch.Tensor
    pad: torch.Tensor
    slot: torch.Tensor
    step: torch.Tensor

    @staticmethod
    def allocate(sizes: Sizes, decoder: Decoder, device: torch.device, dtype: torch.dtype) -> Memory:
        """Allocate it, all zeros.

        Raises:
            torch.cuda.OutOfMemoryError: It does not fit.
        """
        rows = sizes.rows
        nbytes = max(sizes.layout(Shape(cap, length)).nbytes for length, cap in sizes.caps.items())
        integers = functools.partial(torch.zeros, dtype=torch.int64, device=device)
        return Memory(
            sizes,
            cache=Cache(decoder, sizes.cells(sizes.largest[0]), device, dtype),
            inputs=torch.zeros(nbytes, dtype=torch.uint8, device=device),
            logits=torch.zeros(rows, decoder.outputs, dtype=dtype, device=device),
            token=integers(rows),
            told=integers(rows),
            pad=integers(rows),
            slot=integers(1),
            step=integers(1),
        )

    @staticmethod
    def fitting(grid: Grid, new_tokens: int, decoder: Decoder, device: torch.device, dtype: torch.dtype) -> Memory:
        """Allocate it for as many rows as fit; the grid's limits are lowered to them.

        Raises:
            torch.cuda.OutOfMemoryError: Not even one row fits.
        """
        memory = None
        while memory is None:
            sizes = Sizes.of(grid, new_tokens)
            rows, length = sizes.largest
            allocate = functools.partial(Memory.allocate, sizes, decoder, device, dtype)
            memory = fit(grid, f"The cache for {rows} texts of {length} tokens", rows, length, allocate)
        return memory

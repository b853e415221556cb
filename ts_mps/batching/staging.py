"""Host and device memory that batches are staged in: pinned, kept, one block for all inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ts_mps.batching.batch import LENGTHS
from ts_mps.batching.grid import Grid, Shape
from ts_mps.batching.instances import Array

#: Where each tensor of a block begins; CUDA's own allocations are aligned so, and vectorised kernels rely on it.
_ALIGNMENT = 256


@dataclass(frozen=True)
class Field:
    """One tensor in a block of bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """Where the tensors of one shape lie in a block of ``nbytes`` bytes."""

    fields: tuple[Field, ...]
    nbytes: int

    @staticmethod
    def of(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Layout:
        """Lay out tensors of the given dtypes and shapes one after another."""
        fields, offset = [], 0
        for name, (dtype, shape) in tensors.items():
            nbytes = dtype.itemsize * int(np.prod(shape))
            fields.append(Field(name, dtype, shape, offset, nbytes))
            offset += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        return Layout(tuple(fields), offset)

    def views(self, block: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors in a block (uint8 [at least nbytes]), sharing its memory."""
        return {
            field.name: block[field.offset : field.offset + field.nbytes].view(field.dtype).view(field.shape)
            for field in self.fields
        }


def input_layout(grid: Grid, shape: Shape) -> Layout:
    """The layout of the inputs of one shape, with the lengths of the instances where something is padded."""
    tensors = {
        name: (getattr(torch, one.dtype), (shape.rows, *one.shape_at(shape.length)))
        for name, one in grid.inputs.items()
    }
    if not shape.full:
        tensors[LENGTHS] = (torch.int64, (shape.rows,))
    return Layout.of(tensors)


class HostBlock:
    """A block of pinned host memory that grows when it must, and its views as numpy arrays by layout."""

    def __init__(self, nbytes: int = 0, *, pinned: bool = True) -> None:
        self._pinned = pinned
        self.tensor = self._allocate(nbytes)
        self._views: dict[Layout, dict[str, Array]] = {}

    def _allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(max(nbytes, _ALIGNMENT), dtype=torch.uint8, pin_memory=self._pinned)

    def arrays(self, layout: Layout) -> dict[str, Array]:
        """The layout's tensors as numpy arrays over this block; valid until a larger layout is asked for."""
        found = self._views.get(layout)
        if found is None:
            if layout.nbytes > self.tensor.numel():
                self.tensor = self._allocate(layout.nbytes)
                self._views.clear()
            elif len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            found = {name: view.numpy() for name, view in layout.views(self.tensor).items()}
            self._views[layout] = found
        return found


#: Shapes that are run without a graph can be many; their views are made anew rather than kept for ever.
_MOST_VIEWS = 512

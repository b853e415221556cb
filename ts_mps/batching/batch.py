"""What a handler's ``run`` gets: the tensors of one run, on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ts_mps.batching.errors import ConfigError
from ts_mps.batching.grid import Shape
from ts_mps.batching.instances import Array

#: The name under which the runner stages the instances' lengths.
LENGTHS = "ts_mps.lengths"


class Batch:
    """The inputs of one run.

    ``batch["name"]`` is the input of that name, [rows, ...]. Rows beyond the instances hold padding and their results
    are dropped.

    Args:
        tensors: Inputs by name; LENGTHS among them where something is padded.
        shape: What the batch is padded to.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], shape: Shape) -> None:
        self._tensors = tensors
        self.shape = shape

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    @property
    def lengths(self) -> torch.Tensor | None:
        """int64 [rows], each instance's tokens; None where nothing is padded."""
        return None if self.shape.full else self._tensors[LENGTHS]

    @property
    def mask(self) -> torch.Tensor | None:
        """bool [rows, length], true for tokens and false for padding; None where nothing is padded."""
        lengths = self.lengths
        if lengths is None:
            return None
        return torch.arange(self.shape.length, device=lengths.device) < lengths[:, None]


#: A handler's ``run``: from a batch to one result, or to results by name, each [rows, ...].
Model = Callable[[Batch], torch.Tensor | Mapping[str, torch.Tensor]]

#: Results by name on the host, [n, ...]; floating ones are float32.
Results = Mapping[str, Array]

#: The name of the result of a ``run`` that returns one tensor.
OUTPUT = "output"


def named(results: torch.Tensor | Mapping[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
    """A run's results by name, floating ones as float32.

    Raises:
        TypeError: They are neither a tensor nor tensors by name.
        ValueError: One has not one entry for each row.
    """
    found = {OUTPUT: results} if isinstance(results, torch.Tensor) else dict(results)
    for name, tensor in found.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"run returned {type(tensor).__name__} as {name}; tensors are needed")
        if tensor.ndim == 0 or tensor.shape[0] != rows:
            raise ValueError(f"run returned {name} of shape {list(tensor.shape)} for a batch of {rows} rows")
        if tensor.is_floating_point():
            found[name] = tensor.float()
    return found


def apply(
    model: Model, inputs: Mapping[str, torch.Tensor], shape: Shape, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Run a model on the inputs of one shape, floating ones converted to ``dtype``; its results as of :func:`named`."""
    tensors = {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs.items()}
    return named(model(Batch(tensors, shape)), shape.rows)


class Trailing:
    """Sees to it that every shape of batch gives results of one shape, as they are pooled again."""

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}

    def check(self, results: Mapping[str, torch.Tensor], shape: Shape) -> None:
        """Compare the results of a warm-up run with those of the runs before it.

        Raises:
            ConfigError: One instance's result has another shape here.
        """
        for name, tensor in results.items():
            own = tuple(tensor.shape[1:])
            first = self._shapes.setdefault(name, own)
            if own != first:
                raise ConfigError(
                    f"run returned {name} of shape {list(first)} for each instance, and of shape {list(own)} in a "
                    f"batch padded to {shape.rows} x {shape.length}; it must not depend on the padding."
                )

"""A numerical check for workers under an SM limit: matrix products against an exact float64 reference.

Wrong products have been reported on GPUs whose SMs are limited through MPS. A worker that computes wrong answers looks
healthy in every other respect, so it is looked for before the worker loads.

**The bound.** For C = A B with inner size K, computed in any order in an arithmetic of unit roundoff u, Higham
(Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, section 3.5) gives elementwise

    |computed C - C| <= gamma_K |A| |B|,    gamma_K = K u / (1 - K u),

and a result that is then rounded to a dtype of unit roundoff v adds at most v |C|: with fp32 accumulation u = 2^-24,
v = 2^-8 for bf16 and 2^-11 for fp16. For random reals that bound is as large as many faults (a library may split K and
add the parts in bf16, where u is 2^-8: gamma_16 is 7 % of |A| |B|). It is the sum of the roundings of all partial sums
though, and a partial sum that the dtype can hold is not rounded. The operands here are small integers, scaled so that
every partial sum, in every order and split, stays below 2^8, which even bf16 holds exactly: all roundings are 0, the
bound is 0, and one wrong element of one unit is seen. CUTLASS tests its kernels so too.

**The reference** comes from the host, as the GPU's own could have the same fault. A = U V has rank 4, so U (V B) gives
every element of C in O(n^2) operations.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ts_mps.errors import MpsError
from ts_mps.plan.model import PlannedGpu

#: Rows, inner size and columns: what libraries have different kernels for, with one that fits no tile.
SIZES = ((128, 128, 128), (512, 512, 512), (1000, 777, 513), (1024, 1024, 1024), (2048, 2048, 2048))
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

#: Rank of A. Elements of C have a variance of at most K (rank x 1/2 x 1/2 for each of K terms), which puts 2^8 at 5.6
#: standard deviations for K = 2048, the largest inner size that the operands are made for.
_RANK = 4
_SEED = 20

#: Rows, inner size, columns.
Size: TypeAlias = tuple[int, int, int]
Multiply: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Operands:
    """Integers on the host whose product every dtype computes without rounding.

    Attributes:
        a: float32 [m, k].
        weight: float32 [n, k], laid out as a linear layer's weight.
        product: float64 [m, n], ``a @ weight.T``.
    """

    a: torch.Tensor
    weight: torch.Tensor
    product: torch.Tensor

    @staticmethod
    def make(size: Size) -> Operands:
        """The operands of one size; always the same."""
        rows, inner, columns = size
        generator = torch.Generator().manual_seed(_SEED)

        def draw(*shape: int) -> torch.Tensor:
            """-1, 0, 0 and 1, each as likely."""
            pair = torch.randint(0, 2, (2, *shape), generator=generator, dtype=torch.int8)
            return (pair[0] - pair[1]).to(torch.float32)

        left, right, weight = draw(rows, _RANK), draw(_RANK, inner), draw(columns, inner)
        # float32 holds these sums of integers exactly; it is the final product that is asked for in float64.
        product = left.double() @ (right @ weight.T).double()
        return Operands(left @ right, weight, product)


@dataclass(frozen=True)
class Wrong:
    """A product that is not what it must be.

    Attributes:
        size: Rows, inner size, columns.
        dtype: What it was computed in.
        elements: How many elements differ.
        position: Row and column of the one that differs most; one that is not a number differs most of all.
        value: What was computed there.
        expected: What is right there.
    """

    size: Size
    dtype: torch.dtype
    elements: int
    position: tuple[int, int]
    value: float
    expected: float

    def __str__(self) -> str:
        shape, total = "x".join(map(str, self.size)), self.size[0] * self.size[2]
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"a {dtype} matrix product of {shape} is wrong in {self.elements:,} of {total:,} elements; worst is "
            f"{self.value:g} in place of {self.expected:g} at row {self.position[0]}, column {self.position[1]}"
        )


def wrong_products(
    device: torch.device,
    *,
    sizes: Sequence[Size] = SIZES,
    dtypes: Sequence[torch.dtype] = DTYPES,
    multiply: Multiply = torch.nn.functional.linear,
) -> Iterator[Wrong]:
    """Multiply on a device and compare on the host.

    Args:
        device: Where the products are computed.
        sizes: Rows, inner size (at most 2048) and columns of each product.
        dtypes: What to compute in.
        multiply: Takes [m, k] and [n, k] and gives [m, n], on the device; as linear layers do by default.

    Yields:
        Each product that is wrong in any element.

    Raises:
        RuntimeError: CUDA cannot compute it, or memory is short.
    """
    for size in sizes:
        operands = Operands.make(size)
        with torch.inference_mode():
            results = [multiply(operands.a.to(device, dtype), operands.weight.to(device, dtype)) for dtype in dtypes]
        for dtype, result in zip(dtypes, results, strict=True):
            if (wrong := _compare(size, dtype, result.cpu(), operands.product)) is not None:
                yield wrong


def _compare(
    size: tuple[int, int, int], dtype: torch.dtype, result: torch.Tensor, product: torch.Tensor
) -> Wrong | None:
    if torch.equal(result, product.to(dtype)):
        return None
    error = (result.double() - product).abs().nan_to_num(nan=float("inf"))
    worst = int(error.argmax())
    position = divmod(worst, size[2])
    return Wrong(size, dtype, int((error != 0).sum()), position, float(result[position]), float(product[position]))


def _dtypes(device: str) -> Sequence[torch.dtype]:
    """What the device can compute in: GPUs before Ampere (compute capability 8.0) have no bf16."""
    if torch.device(device).type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
        return [dtype for dtype in DTYPES if dtype != torch.bfloat16]
    return DTYPES


def check(
    gpu: PlannedGpu,
    percentage: float,
    *,
    device: str = "cuda",
    sizes: Sequence[Size] = SIZES,
    multiply: Multiply = torch.nn.functional.linear,
) -> float:
    """Check this process's share of its GPU.

    The memory is given back, but for the workspace of cuBLAS, which the handler's own products will use.

    Args:
        gpu: The worker's GPU.
        percentage: Its thread percentage.
        device: torch's name of the GPU; CUDA shows a worker exactly one.
        sizes: As in :func:`wrong_products`.
        multiply: As in :func:`wrong_products`.

    Returns:
        Seconds it took, without the time to open the CUDA context.

    Raises:
        MpsError: A product is wrong, or could not be computed.
    """
    where = f"Worker {os.getpid()} on {gpu.label} with a thread percentage of {percentage:g}"
    try:
        torch.zeros(1, device=device)
        began = time.monotonic()
        products = wrong_products(torch.device(device), sizes=sizes, dtypes=_dtypes(device), multiply=multiply)
        wrong = next(products, None)
        sms = torch.cuda.get_device_properties(device).multi_processor_count if torch.cuda.is_initialized() else 0
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise MpsError(
            f"{where} was not loaded, because its arithmetic could not be checked: {error}",
            "A limited worker needs a torch that can use its GPU and about 100 MiB; or plan it without a percentage.",
        ) from error
    finally:
        if torch.cuda.is_initialized():
            with suppress(RuntimeError):  # after an error that is for good; its own sentence matters more
                torch.cuda.empty_cache()
    if wrong is not None:
        raise MpsError(
            f"{where} ({sms} SMs) was not loaded, because it computes wrong results: {wrong}.",
            "Plan the model with another thread percentage, or with none (thread_percentage in ts-mps.toml, or "
            "--percentages none), and report it to NVIDIA with the driver's version.",
        )
    seconds = time.monotonic() - began
    logging.info("Matrix products under a thread percentage of %g are right (%.2f s)", percentage, seconds)
    return seconds

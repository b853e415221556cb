"""The numerical check: operands that leave no rounding, and faults of every shape that are seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ts_mps.errors import MpsError
from ts_mps.plan.model import PlannedGpu
from ts_mps.torchserve import numerics
from ts_mps.torchserve.numerics import DTYPES, SIZES, Operands, check, wrong_products

GPU = PlannedGpu(3, "GPU-00000003-0000-4000-8000-000000000003", "NVIDIA H200", 48, "/pipe")
CPU = torch.device("cpu")
SMALL = ((128, 128, 128), (100, 77, 51))

Fault = Callable[[torch.Tensor], None]


def faulty(spoil: Fault, dtype: torch.dtype | None = None, rows: int | None = None):
    """A matrix product that is spoilt, for one dtype and number of rows or for all."""

    def multiply(a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        result = torch.nn.functional.linear(a, weight)
        if dtype in (None, a.dtype) and rows in (None, len(a)):
            spoil(result)
        return result

    return multiply


class TestOperands:
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_the_reference_is_the_product_and_bf16_holds_it(self, size):
        made = Operands.make(size)
        assert made.product.dtype == torch.float64 and made.product.shape == (size[0], size[2])
        assert torch.equal(made.a.double() @ made.weight.double().T, made.product)
        assert made.product.abs().max() < 2**8
        assert made.product.abs().mean() > size[1] ** 0.5 / 4, "not so thin that a lost part would leave it as it is"

    @pytest.mark.parametrize("parts", [2, 3, 16])
    def test_every_way_to_split_the_sum_stays_within_bf16(self, parts):
        """What makes a tolerance of zero right: no partial sum is rounded, in whatever order it is added."""
        made = Operands.make(SIZES[-1])
        a, weight = made.a.double(), made.weight.double()
        for first in range(parts):
            strided = a[:, first::parts] @ weight[:, first::parts].T
            blocks = a.tensor_split(parts, 1)[first] @ weight.tensor_split(parts, 1)[first].T
            assert max(strided.abs().max(), blocks.abs().max()) < 2**8

    def test_they_are_always_the_same(self):
        torch.manual_seed(1)
        first = Operands.make(SMALL[0])
        state = torch.get_rng_state()
        second = Operands.make(SMALL[0])
        assert torch.equal(first.a, second.a) and torch.equal(first.weight, second.weight)
        assert torch.equal(torch.get_rng_state(), state), "the handler's random numbers are left alone"


class TestWrongProducts:
    def test_right_products_pass_at_every_size(self):
        assert list(wrong_products(CPU, sizes=SIZES[:4])) == []

    def test_parts_added_in_bf16_are_right(self):
        """A library may split the inner size and add the parts in the result's dtype."""

        def split(a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            parts = [a[:, n::4] @ weight[:, n::4].T for n in range(4)]
            return (parts[0] + parts[1]) + (parts[2] + parts[3])

        assert list(wrong_products(CPU, sizes=SIZES[:4], multiply=split)) == []

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(
        ("spoil", "elements"),
        [
            (lambda c: c[99, 50].add_(1), 1),
            (lambda c: c[0, 0].fill_(float("nan")), 1),
            (lambda c: c[0, 0].fill_(float("inf")), 1),
            (lambda c: c.fill_(float("nan")), 128 * 128),
        ],
        ids=["one unit", "nan", "inf", "all nan"],
    )
    def test_a_fault_is_found_where_it_is(self, dtype, spoil, elements):
        (wrong,) = wrong_products(CPU, sizes=SMALL, multiply=faulty(spoil, dtype, rows=128))
        assert (wrong.size, wrong.dtype, wrong.elements) == (SMALL[0], dtype, elements)
        assert wrong.position == ((99, 50) if wrong.value == wrong.expected + 1 else (0, 0))

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda c: c[64:, :64].zero_(),
            lambda c: c[64:, :64].copy_(c[:64, :64].clone()),
            lambda c: c.copy_(c.roll(1, 0)),
        ],
        ids=["a block lost", "a block twice", "rows shifted"],
    )
    def test_wrong_blocks_are_found(self, spoil):
        found = list(wrong_products(CPU, sizes=SMALL[:1], multiply=faulty(spoil)))
        assert [wrong.dtype for wrong in found] == list(DTYPES)
        assert all(wrong.elements > 1000 for wrong in found)

    def test_a_part_of_the_sum_that_is_lost_is_found(self):
        def short(a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return a[:, :-1] @ weight[:, :-1].T

        assert len(list(wrong_products(CPU, sizes=SMALL, multiply=short))) == len(SMALL) * len(DTYPES)


class TestCheck:
    def test_a_right_share_says_how_long_it_took(self):
        assert 0 < check(GPU, 50.0, device="cpu", sizes=SMALL) < 5

    def test_the_refusal_names_gpu_share_dtype_size_and_error(self):
        multiply = faulty(lambda c: c[5, 7].fill_(float("nan")), torch.float16, rows=128)
        with pytest.raises(MpsError) as refused:
            check(GPU, 37.5, device="cpu", multiply=multiply)
        expected = Operands.make(SIZES[0]).product[5, 7]
        for part in (
            GPU.label,
            "thread percentage of 37.5",
            "float16 matrix product of 128x128x128 is wrong in 1 of 16,384 elements",
            f"nan in place of {expected:g} at row 5, column 7",
        ):
            assert part in refused.value.what
        assert "another thread percentage, or with none" in refused.value.remedy

    @pytest.mark.parametrize(("capability", "expected"), [((7, 5), DTYPES[1:]), ((8, 0), DTYPES)], ids=str)
    def test_a_gpu_without_bf16_is_checked_in_what_it_has(self, monkeypatch, capability, expected):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        seen: dict[str, object] = {}

        def products(device: torch.device, **given: object):
            seen.update(given)
            return iter(())

        monkeypatch.setattr(numerics, "wrong_products", products)
        monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
        check(GPU, 50.0)
        assert tuple(seen["dtypes"]) == expected and seen["sizes"] == SIZES

    def test_a_gpu_that_torch_cannot_use_is_refused_and_not_passed(self):
        if torch.cuda.is_available():
            pytest.skip("torch can use this machine's GPU")
        with pytest.raises(MpsError, match="could not be checked") as refused:
            check(GPU, 50.0)
        assert GPU.label in refused.value.what and "without a percentage" in refused.value.remedy

    def test_short_memory_is_a_sentence(self):
        def multiply(a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 32.00 MiB.")

        with pytest.raises(MpsError, match=r"could not be checked: CUDA out of memory\. Tried"):
            check(GPU, 50.0, device="cpu", multiply=multiply)

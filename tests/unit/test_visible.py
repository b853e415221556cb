from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.errors import PreflightError
from ts_mps.gpu.inventory import Gpu, Inventory
from ts_mps.gpu.visible import select_gpus


def gpu(index: int, uuid: str) -> Gpu:
    return Gpu(index, uuid, "NVIDIA H200", (9, 0), 1, 1, "Default", False, ())


A = gpu(0, "GPU-aaaa1111-0000-4000-8000-000000000000")
B = gpu(1, "GPU-aaaa2222-0000-4000-8000-000000000000")
C = gpu(2, "GPU-cccc3333-0000-4000-8000-000000000000")
MACHINE = Inventory((A, B, C), "580", "")


@pytest.mark.parametrize(
    ("visible", "chosen"),
    [
        (None, (A, B, C)),
        ("", ()),
        ("  ", ()),
        ("0", (A,)),
        ("2,0", (C, A)),
        (" 2 , 0 ", (C, A)),
        (C.uuid, (C,)),
        (f"{C.uuid},1", (C, B)),
        ("GPU-c", (C,)),
        ("GPU-aaaa2", (B,)),
        ("-1", ()),
        ("1,-1,7", (B,)),
    ],
)
def test_chosen(visible: str | None, chosen: tuple[Gpu, ...]):
    assert select_gpus(MACHINE, visible, None) == chosen


@pytest.mark.parametrize(
    ("visible", "sentence"),
    [
        ("3", "names '3', which is no GPU of this machine"),
        ("0,GPU-dddd", "names 'GPU-dddd', which is no GPU of this machine"),
        ("cccc3333", "names 'cccc3333', which is no GPU of this machine"),
        ("0,,1", "names '', which is no GPU of this machine"),
        ("all", "names 'all', which is no GPU of this machine"),
        ("GPU-aaaa", "names 'GPU-aaaa', which fits 2 GPUs"),
        ("0,0", "CUDA_VISIBLE_DEVICES=0,0 names GPU 0 (GPU-aaaa1111-0000-4000-8000-000000000000) twice"),
        ("0,GPU-aaaa1", "twice"),
        ("MIG-1c2f", "names the MIG instance 'MIG-1c2f'; ts-mps serves on whole GPUs only"),
    ],
)
def test_refused(visible: str, sentence: str):
    with pytest.raises(PreflightError) as caught:
        select_gpus(MACHINE, visible, None)
    assert sentence in caught.value.what
    assert caught.value.remedy


def test_the_remedy_says_what_the_machine_has():
    with pytest.raises(PreflightError) as caught:
        select_gpus(Inventory((C,), "580", ""), "5", None)
    assert caught.value.remedy == f"This machine has: 2 = {C.uuid} (NVIDIA H200)."


@pytest.mark.parametrize(("count", "chosen"), [(None, (C, A)), (5, (C, A)), (1, (C,)), (0, ()), (-1, ())])
def test_number_of_gpu_takes_the_first(count: int | None, chosen: tuple[Gpu, ...]):
    assert select_gpus(MACHINE, "2,0", count) == chosen


@pytest.mark.parametrize("visible", [None, "", "0", "GPU-x"])
def test_a_machine_without_gpus_has_nothing_to_choose_from(visible: str | None):
    assert select_gpus(Inventory((), "", "This machine has no NVIDIA driver."), visible, 3) == ()


@given(
    st.permutations((A, B, C)).flatmap(lambda order: st.integers(0, 3).map(lambda count: tuple(order[:count]))),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.none() | st.integers(0, 4),
)
def test_order_is_kept_whether_by_index_or_uuid(wanted: tuple[Gpu, ...], by_uuid: list[bool], count: int | None):
    entries = [one.uuid if uuid else str(one.index) for one, uuid in zip(wanted, by_uuid, strict=False)]
    assert select_gpus(MACHINE, ",".join(entries), count) == wanted[:count]


@given(st.text(alphabet="0123456789,-GPUacMI ", max_size=12))
def test_any_text_chooses_distinct_gpus_or_is_refused(visible: str):
    try:
        chosen = select_gpus(MACHINE, visible, None)
    except PreflightError as error:
        assert error.what and error.remedy
    else:
        assert len(set(chosen)) == len(chosen) and set(chosen) <= {A, B, C}

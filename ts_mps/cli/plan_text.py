"""A plan as text for people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from ts_mps.guardian.choice import MPS_SENTENCE
from ts_mps.plan.model import Plan, PlannedGpu, PlannedModel, Slot

_GIB = 2**30


def plan_text(plan: Plan) -> RenderableType:
    """Tables of GPUs, of what runs on each, and of models, with the reason for every number."""
    workers = f"{len(plan.slots)} worker(s)"
    state = "on" if plan.mps else "off"
    mps = f". {plan.mps_why}" if plan.mps_why.startswith(MPS_SENTENCE) else f", MPS {state}: {plan.mps_why}"
    parts: list[RenderableType] = [f"[bold]{workers}[/]{escape(mps)}"]
    if plan.gpus:
        parts += ["", _gpu_table(plan.gpus)]
    parts += ["", _place_table(plan), "", _model_table(plan.models)]
    parts += ["" for _ in plan.warnings[:1]]
    parts += [f"[yellow]warning[/] {escape(warning)}" for warning in plan.warnings]
    return Group(*parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in ("WHY", "NAME", "CAP FROM"))
    return table


def _gpu_table(gpus: Sequence[PlannedGpu]) -> Table:
    table = _table("GPU", "NAME", "UUID", "CLIENTS", "CAP FROM", "MEMORY")
    for gpu in gpus:
        clients = str(gpu.clients) if gpu.cap is None else f"{gpu.clients} of {gpu.cap}"
        kept = [f"{gpu.reserve} kept free"] if gpu.reserve and gpu.cap is not None else []
        kept += [f"{gpu.attached} of others"] if gpu.attached else []
        memory = f"{_gib(gpu.memory_planned)} of {_gib(gpu.memory_budget)} (GPU: {_gib(gpu.memory_total)})"
        table.add_row(
            str(gpu.index),
            escape(gpu.name),
            gpu.uuid[:12],
            "; ".join([clients, *kept]),
            escape(gpu.cap_why) if gpu.cap is not None else "-",
            memory if gpu.memory_total else "-",
        )
    return table


def _place_table(plan: Plan) -> Table:
    """Workers that are alike stand in one row."""
    table = _table("ON", "MODEL", "WORKERS", "SLOTS", "SHARE", "CORES", "WHY")
    alike: dict[tuple[object, ...], list[Slot]] = defaultdict(list)
    for slot in plan.slots:
        key = (slot.gpu, slot.model, slot.version, _share(slot), "" if _own_cores(plan) else _cores(slot), slot.why)
        alike[key].append(slot)
    order = {gpu.uuid: place for place, gpu in enumerate(plan.gpus)}
    for slots in sorted(alike.values(), key=lambda same: (order.get(same[0].gpu or "", len(order)), same[0].number)):
        first = slots[0]
        table.add_row(
            "cpu" if first.gpu is None else _place(plan, first.gpu),
            _named(first.model, first.version),
            str(len(slots)),
            _runs([slot.number for slot in slots]),
            _share(first),
            _runs(sorted({core for slot in slots for core in slot.cores})) or "all",
            escape(first.why),
        )
    return table


def _place(plan: Plan, uuid: str) -> str:
    index = plan.gpu(uuid).index
    alone = sum(gpu.index == index for gpu in plan.gpus) == 1
    return f"GPU {index}" if alone else f"GPU {index} {uuid[:12]}"  # instances of one GPU in MIG mode


def _own_cores(plan: Plan) -> bool:
    """Whether workers have cores of their own, so that no two rows would be alike."""
    return len({slot.cores for slot in plan.slots}) > max(1, len(plan.gpus))


def _model_table(models: Sequence[PlannedModel]) -> Table:
    table = _table("MODEL", "WORKERS", "REQUESTS/S", "MEMORY EACH", "FROM", "WHY")
    for model in models:
        speed = model.requests_per_second
        table.add_row(
            _named(model.name, model.version),
            str(model.workers),
            "-" if speed is None else f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}",
            _gib(model.memory) if model.memory else "-",
            escape(model.memory_source) or "-",
            escape(model.why),
        )
    return table


def _named(name: str, version: str | None) -> str:
    return escape(f"{name} {version}" if version else name)


def _share(slot: Slot) -> str:
    parts = []
    if slot.thread_percentage is not None:
        sms = f" = {slot.sms} SMs" if slot.sms else ""
        parts.append(f"{slot.thread_percentage:g} %{sms}")
    if slot.memory_limit is not None:
        parts.append(f"at most {slot.memory_limit}")
    if slot.priority:
        parts.append("below normal")
    return ", ".join(parts) or "all"


def _cores(slot: Slot) -> str:
    return _runs(slot.cores)


def _runs(numbers: Sequence[int]) -> str:
    """Ascending numbers, such as 0-3,8."""
    groups = Counter(number - place for place, number in enumerate(numbers))
    text, at = [], 0
    for count in groups.values():
        first, last = numbers[at], numbers[at + count - 1]
        text.append(str(first) if count == 1 else f"{first}-{last}")
        at += count
    return ",".join(text)


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"

"""Running a causal language model: prefill and decode as CUDA graphs over one static key-value cache.

Prompts are padded on the left, so that all rows of a run write the same slot at each step; the slot is a number on the
device, so that one graph serves all steps. The host looks at tokens some steps late, while the device computes the
next ones; what a row computed after its end is dropped.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ts_mps.batching.batch import LENGTHS, Results
from ts_mps.batching.decoder import Attention, Cache, Decoder, pairs
from ts_mps.batching.errors import REQUESTS_FAULT, ConfigError, check_fault
from ts_mps.batching.gather import Chunk
from ts_mps.batching.grid import Grid, Shape
from ts_mps.batching.instances import Array
from ts_mps.batching.runner import IN_FLIGHT, Fill, Pending, RunCounts
from ts_mps.batching.sampling import Wish, draw, most_probable, write_controls
from ts_mps.batching.staging import HostBlock, Layout, input_layout

_log = logging.getLogger(__name__)

#: The host column in which ``collate`` leaves a Wish for each instance: an array of objects [rows].
WISHES = "ts_mps.wishes"

#: Why a row ended, as numbered in the result ``finish``.
STOPPED, FULL, BROKEN = 0, 1, 2

#: How many steps the device is ahead of the tokens that the host looks at: one that runs and one that waits.
_LAG = 2

#: Cache slots come in multiples of this, as the attention's kernels like it, and decode graphs in its powers of two.
_SLOTS = 64

#: Tokens may give no text of their own (half a character, a special token): how many more of the last ones to look at.
_SLACK = 8

#: From token ids to their text.
TextOf = Callable[[Sequence[int]], str]


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


class Follower:
    """Follows one row on the host until it ends.

    Args:
        wish: What was asked for.
        text_of: The tokenizer.

    Attributes:
        tokens: The answer so far.
        finish: STOPPED, FULL or BROKEN.
        characters: Length of the answer's text before a stop text; -1 if none was met.
    """

    def __init__(self, wish: Wish, text_of: TextOf) -> None:
        self._wish = wish
        self._text_of = text_of
        # A token has at least one byte of text.
        self._tail = max((len(text.encode()) for text in wish.stop), default=0) + _SLACK
        self.tokens: list[int] = []
        self.finish = FULL
        self.characters = -1

    def goes_on(self, token: int) -> bool:
        """Take the next token, -1 if the model gave none; whether more are wanted."""
        if token < 0:
            self.finish = BROKEN
            return False
        ended = token in self._wish.stop_ids
        if not ended:
            self.tokens.append(token)
        full = len(self.tokens) >= self._wish.max_tokens
        if self._wish.stop and (ended or full or self._stops_in(self.tokens[-self._tail :])):
            whole = self._text_of(self.tokens)
            self.characters = min((place for text in self._wish.stop if (place := whole.find(text)) >= 0), default=-1)
        if ended or self.characters >= 0:
            self.finish = STOPPED
            return False
        return not full

    def _stops_in(self, tokens: Sequence[int]) -> bool:
        text = self._text_of(tokens)
        return any(stop in text for stop in self._wish.stop)


class _Slot:
    """What one run in flight needs for itself on the host."""

    def __init__(self, steps: int, rows: int, *, pinned: bool) -> None:
        self.inputs = HostBlock(pinned=pinned)
        self.tokens_out = torch.full((steps, rows), -1, dtype=torch.int64, pin_memory=pinned)
        self.tokens: Array = self.tokens_out.numpy()
        self.filled = torch.cuda.Event() if pinned else None
        self.written = [torch.cuda.Event() for _ in range(_LAG + 1)] if pinned else []


@dataclass(eq=False)
class _Run:
    """One run: filled, then begun on the device, then followed to its end."""

    finish: Callable[[_Run], Results]
    slot: _Slot
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


class GenerationRunner:
    """Generates text, on a stream of its own; on the CPU the same without graphs.

    All runs share one cache and one state on the device, so a second run is only filled while the first one computes,
    and begins when it has ended. All graphs share one memory pool, as they follow one another on the stream.

    Results, one row for each instance: ``token_ids`` int64 [rows, max_new_tokens], padded with -1; ``count`` int64, how
    many of them; ``finish`` int64, STOPPED, FULL or BROKEN (the logits were not finite); ``characters`` int64, the
    length of the text before a stop text, -1 if none was met; ``prompt_tokens`` int64; ``seed`` int64, -1 where nothing
    was drawn.

    Args:
        decoder: The model, on the device.
        grid: The shapes; its limits shrink where a shape does not fit into memory.
        device: The device.
        dtype: What the model computes in.
        max_new_tokens: Most tokens that any wish asks for.
        text_of: The tokenizer, for stop texts.
        graphs: Whether to capture; ignored on the CPU.

    Raises:
        ConfigError: Prompt and answer may be longer than the model allows.
    """

    def __init__(
        self,
        decoder: Decoder,
        grid: Grid,
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_new_tokens: int,
        text_of: TextOf,
        graphs: bool,
    ) -> None:
        longest = grid.longest + max_new_tokens
        if decoder.positions is not None and longest > decoder.positions:
            raise ConfigError(
                f"batching.lengths and handler.max_new_tokens: prompt and answer may have {longest} tokens, and the "
                f"model has {decoder.positions} positions."
            )
        self._decoder = decoder
        self._grid = grid
        self._device = device
        self._dtype = dtype
        self._most = max_new_tokens
        self._text_of = text_of
        self._cuda = device.type == "cuda"
        self._use_graphs = graphs and self._cuda
        self._lag = _LAG if self._cuda else 0
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._graphs: dict[Stage, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._use_graphs else None
        self._flying: deque[_Run] = deque()
        self._next = 0
        self.counts = RunCounts()

    # -- memory ----------------------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        """Allocate everything that a run needs on the device, for as many rows as fit.

        Raises:
            torch.OutOfMemoryError: Not even one row fits.
        """
        while True:
            self._caps = {length: self._grid.cap(length) for length in self._grid.lengths}
            try:
                self._allocate_all()
                return
            except torch.OutOfMemoryError:
                rows, length = max(((cap, length) for length, cap in self._caps.items()), key=self._cells)
                if not self._grid.shrink(rows, length):
                    raise
                torch.cuda.empty_cache()
                _log.warning(
                    "No memory for %d texts of %d tokens at once; now %d.", rows, length, self._grid.cap(length)
                )

    def _cells(self, shape: tuple[int, int]) -> int:
        return shape[0] * self._slots(shape[0])

    def _allocate_all(self) -> None:
        rows = max(self._caps.values())
        nbytes = max(self._layout(Shape(cap, length)).nbytes for length, cap in self._caps.items())
        integers = functools.partial(torch.zeros, dtype=torch.int64, device=self._device)
        self._cache = Cache(
            self._decoder, max(self._cells((cap, 0)) for cap in self._caps.values()), self._device, self._dtype
        )
        self._inputs = torch.zeros(nbytes, dtype=torch.uint8, device=self._device)
        self._logits = torch.zeros(rows, self._decoder.outputs, dtype=self._dtype, device=self._device)
        self._token, self._told, self._pad = integers(rows), integers(rows), integers(rows)
        self._slot, self._step = integers(1), integers(1)
        self._slots_in_flight = [_Slot(self._most, rows, pinned=self._cuda) for _ in range(IN_FLIGHT)]

    def _slots(self, rows: int) -> int:
        """Slots of each row in runs of so many rows: for the longest prompt that they may have, and its answer."""
        longest = max(length for length, cap in self._caps.items() if cap >= rows)
        return -(-(longest + self._most) // _SLOTS) * _SLOTS

    def _span(self, rows: int, needed: int) -> int:
        """Over how many slots a step attends that needs the first ``needed``."""
        span = _SLOTS
        while span < needed:
            span *= 2
        return min(span, self._slots(rows))

    def _layout(self, shape: Shape) -> Layout:
        """The inputs of one shape; the controls come first, so that their place does not depend on the length."""
        rows = shape.rows
        controls = {
            "temperature": (torch.float32, (rows,)),
            "top_k": (torch.int64, (rows,)),
            "top_p": (torch.float32, (rows,)),
            "uniforms": (torch.float32, (rows, self._most)),
        }
        prompts = input_layout(self._grid, Shape(rows, shape.length, full=False))
        return Layout.of({**controls, **{one.name: (one.dtype, one.shape) for one in prompts.fields}})

    # -- stages ----------------------------------------------------------------------------------------------------

    def _compute(self, stage: Stage) -> None:
        if isinstance(stage, Prefill):
            self._prefill(stage)
        elif isinstance(stage, Decode):
            self._decode(stage)
        else:
            self._pick(stage)

    def _prefill(self, stage: Prefill) -> None:
        rows, length = stage.rows, stage.length
        views = self._layout(Shape(rows, length)).views(self._inputs)
        pad = self._pad[:rows]
        pad.copy_(length - views[LENGTHS])
        self._slot.fill_(length)
        self._step.zero_()
        cache = self._cache.view(rows, self._slots(rows))
        # What an earlier run left there is masked, but NaN times 0 is NaN.
        cache[..., length:, :].zero_()
        slots = torch.arange(length, device=self._device)
        mask = None
        if not stage.full:
            before = slots[None, :] <= slots[:, None]
            # Padding sees itself, as a query that sees nothing at all would compute NaN.
            seen = (before & (slots >= pad[:, None])[:, None, :]) | (slots[None, :] == slots[:, None])
            mask = self._additive(seen)[:, None]
        positions = (slots - pad[:, None]).clamp_min(0)
        self._logits[:rows].copy_(self._decoder(views["input_ids"], positions, Attention(pairs(cache), mask)))

    def _decode(self, stage: Decode) -> None:
        rows = stage.rows
        pad, slots = self._pad[:rows, None], torch.arange(stage.span, device=self._device)
        mask = self._additive((slots >= pad) & (slots <= self._slot))[:, None, None]
        cache = self._cache.view(rows, self._slots(rows))
        attention = Attention(pairs(cache), mask, self._slot)
        self._logits[:rows].copy_(self._decoder(self._token[:rows, None], self._slot - pad, attention))
        self._slot.add_(1)

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        """A mask to add to scores: made once here, where a bool one is converted again in each layer."""
        return torch.zeros_like(seen, dtype=self._dtype).masked_fill_(~seen, float("-inf"))

    def _pick(self, stage: Pick) -> None:
        rows = stage.rows
        logits = self._logits[:rows]
        token, sound = most_probable(logits)
        if stage.sampled:
            views = self._layout(Shape(rows, self._grid.lengths[0])).views(self._inputs)
            temperature = views["temperature"]
            uniform = views["uniforms"].index_select(1, self._step).squeeze(1)
            drawn = draw(logits, temperature, views["top_k"], views["top_p"], uniform)
            token = torch.where(temperature > 0, drawn, token)
        # Logits may be wider than the vocabulary, and an id outside of it would end the whole process.
        self._token[:rows].copy_(token.clamp_max(self._decoder.vocabulary - 1))
        self._told[:rows].copy_(token.masked_fill(~sound, -1))
        self._step.add_(1)

    # -- warm-up ---------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Run every stage; then capture each one.

        A shape that does not fit into memory lowers the grid's limit for its length and all longer ones.

        Raises:
            torch.OutOfMemoryError: Not even one instance fits.
        """
        self._allocate()
        if self._cuda:
            torch.cuda.synchronize(self._device)  # weights and buffers were written on another stream
        for stage in self._stages():
            self._shrinking(stage, functools.partial(self._try, stage))
        if self._use_graphs:
            began = time.monotonic()
            for stage in self._stages():
                self._shrinking(stage, functools.partial(self._capture, stage))
            torch.cuda.synchronize(self._device)
            _log.info("Captured %d CUDA graphs in %.1f s.", len(self._graphs), time.monotonic() - began)

    def _stages(self) -> list[Stage]:
        """Every stage of every shape that fits, the largest first, so that graphs reserve their memory once."""
        shapes = [shape for shape in self._grid.shapes() if shape.rows <= self._grid.cap(shape.length)]
        stages: dict[Stage, None] = {Prefill(shape.rows, shape.length, shape.full): None for shape in shapes}
        for shape in shapes:
            for needed in range(shape.length + 1, shape.length + self._most):
                stages[Decode(shape.rows, self._span(shape.rows, needed))] = None
        for sampled in (True, False):
            stages.update({Pick(shape.rows, sampled): None for shape in shapes})
        return list(stages)

    def _try(self, stage: Stage) -> None:
        with self._on_stream():
            for _ in range(2 if self._cuda else 1):  # libraries settle in the first, the allocator in the second
                self._inputs.zero_()
                for state in (self._pad, self._slot, self._step):
                    state.zero_()
                if isinstance(stage, Prefill):
                    lengths = self._layout(Shape(stage.rows, stage.length)).views(self._inputs)[LENGTHS]
                    lengths.fill_(stage.length if stage.full else 1)
                self._compute(stage)
        if self._stream is not None:
            self._stream.synchronize()

    def _capture(self, stage: Stage) -> None:
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            self._compute(stage)
        self._graphs[stage] = graph

    def _shrinking(self, stage: Stage, run: Callable[[], None]) -> None:
        length = stage.length if isinstance(stage, Prefill) else self._grid.lengths[0]
        if stage.rows > self._grid.cap(length):  # shrunk meanwhile
            return
        try:
            run()
        except torch.OutOfMemoryError:
            if not self._grid.shrink(stage.rows, length):
                raise
            torch.cuda.empty_cache()
            cap = self._grid.cap(length)
            _log.warning("%s does not fit into the GPU's memory; texts of %d tokens: now %d.", stage, length, cap)

    # -- serving ---------------------------------------------------------------------------------------------------

    def launch(self, chunk: Chunk, fill: Fill) -> Pending:
        """Fill host memory, and begin the run if none is on the device; its steps are made in ``wait``."""
        slot = self._slots_in_flight[self._next]
        if slot.filled is not None:
            slot.filled.synchronize()  # the copy of a run that failed may not have been waited for
        layout = self._layout(chunk.shape)
        arrays = slot.inputs.arrays(layout)
        arrays[LENGTHS].fill(chunk.shape.length)
        wishes = np.empty(chunk.rows, dtype=object)
        inputs = {name: arrays[name] for name in self._grid.inputs}
        fill({**inputs, WISHES: wishes, LENGTHS: arrays[LENGTHS]})
        run = _Run(self._finish, slot, chunk, layout, list(wishes), arrays[LENGTHS][: chunk.rows].copy())
        write_controls(run.wishes, arrays, sampled=run.sampled)
        self._next = (self._next + 1) % IN_FLIGHT
        self._flying.append(run)
        if len(self._flying) == 1:
            self._begin(run)
        return run

    def reset(self) -> None:
        """Forget the runs that were started and that nobody will wait for."""
        if self._stream is not None:
            self._stream.synchronize()
        self._flying.clear()

    def _begin(self, run: _Run) -> None:
        """Read the prompts and choose the first tokens; an error is kept for the run that it belongs to."""
        shape = run.chunk.shape
        try:
            with self._on_stream():
                size = run.layout.nbytes
                self._inputs[:size].copy_(run.slot.inputs.tensor[:size], non_blocking=True)
                if run.slot.filled is not None:
                    run.slot.filled.record(self._stream)
                self._do(run, Prefill(shape.rows, shape.length, shape.full))
                self._choose(run)
        except REQUESTS_FAULT as error:
            check_fault(error)
            run.error = error

    def _finish(self, run: _Run) -> Results:
        try:
            if run.error is not None:
                raise run.error
            followers = [Follower(wish, self._text_of) for wish in run.wishes]
            self._follow(run, followers)
            if run.missed:
                self.counts.graph_misses += 1
            else:
                self.counts.graph_hits += 1
            return self._results(run, followers)
        finally:
            self._flying.remove(run)
            if self._flying:
                self._begin(self._flying[0])

    def _follow(self, run: _Run, followers: Sequence[Follower]) -> None:
        if not run.launched:
            raise RuntimeError("a run is waited for that was never begun")
        going = list(enumerate(followers))
        for step in range(run.steps):
            with self._on_stream():
                while run.launched <= min(step + self._lag, run.steps - 1):
                    rows = run.chunk.shape.rows
                    self._do(run, Decode(rows, self._span(rows, run.chunk.shape.length + run.launched)))
                    self._choose(run)
            if run.slot.written:
                run.slot.written[step % len(run.slot.written)].synchronize()
            tokens = run.slot.tokens[step].tolist()
            going = [(row, follower) for row, follower in going if follower.goes_on(tokens[row])]
            if not going:
                return

    def _choose(self, run: _Run) -> None:
        """Choose the next tokens, and send them to the host."""
        rows, slot = run.chunk.shape.rows, run.slot
        self._do(run, Pick(rows, run.sampled))
        slot.tokens_out[run.launched, :rows].copy_(self._told[:rows], non_blocking=True)
        if slot.written:
            slot.written[run.launched % len(slot.written)].record(self._stream)
        run.launched += 1

    def _do(self, run: _Run, stage: Stage) -> None:
        graph = self._graphs.get(stage)
        if graph is None:
            run.missed = True
            self._compute(stage)
        else:
            graph.replay()

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        stream = contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with torch.inference_mode(), stream:
            yield

    def _results(self, run: _Run, followers: Sequence[Follower]) -> Mapping[str, Array]:
        token_ids = np.full((len(followers), self._most), -1, np.int64)
        for row, follower in enumerate(followers):
            token_ids[row, : len(follower.tokens)] = follower.tokens
        return {
            "token_ids": token_ids,
            "count": np.array([len(follower.tokens) for follower in followers], np.int64),
            "finish": np.array([follower.finish for follower in followers], np.int64),
            "characters": np.array([follower.characters for follower in followers], np.int64),
            "prompt_tokens": run.prompt_tokens,
            "seed": np.array([wish.seed if wish.sampled else -1 for wish in run.wishes], np.int64),
        }

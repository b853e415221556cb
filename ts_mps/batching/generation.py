"""Running a causal language model: prefill and decode as CUDA graphs over one static key-value cache.

The host looks at tokens some steps late, while the device computes the next ones; what a row computed after its end is
dropped.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from ts_mps.batching.batch import LENGTHS, Results
from ts_mps.batching.decoder import Decoder
from ts_mps.batching.errors import ConfigError, requests_fault
from ts_mps.batching.flight import HostSlot, Run
from ts_mps.batching.following import Follower, TextOf, results
from ts_mps.batching.gather import Chunk
from ts_mps.batching.grid import Grid
from ts_mps.batching.memory import Memory
from ts_mps.batching.runner import IN_FLIGHT, Fill, Pending, RunCounts
from ts_mps.batching.sampling import write_controls
from ts_mps.batching.stages import Computation, Decode, Pick, Prefill, Stage, stages_of
from ts_mps.batching.warming import capturing, fit

#: The host column in which ``collate`` leaves a Wish for each instance: an array of objects [rows].
WISHES = "ts_mps.wishes"

#: How many steps the device is ahead of the tokens that the host looks at: one that runs and one that waits.
_LAG = 2


class GenerationRunner:
    """Generates text, on a stream of its own; on the CPU the same without graphs.

    All runs share one cache and one state on the device, so a second run is only filled while the first one computes,
    and begins when it has ended. All graphs share one memory pool, as they follow one another on the stream.

    Its results are those of :func:`ts_mps.batching.following.results`.

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
        self._flying: deque[Run] = deque()
        self._next = 0
        self.counts = RunCounts()

    # -- warm-up ---------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Allocate memory and run every stage; then capture each one.

        A shape that does not fit into memory lowers the grid's limit for its length and all longer ones.

        Raises:
            torch.cuda.OutOfMemoryError: Not even one instance fits.
        """
        self._memory = Memory.fitting(self._grid, self._most, self._decoder, self._device, self._dtype)
        self._computation = Computation(self._decoder, self._memory)
        rows = self._memory.sizes.rows
        self._slots = [HostSlot(self._most, rows, ahead=_LAG, pinned=self._cuda) for _ in range(IN_FLIGHT)]
        if self._cuda:
            torch.cuda.synchronize(self._device)  # weights and buffers were written on another stream
        self._each_stage(self._try)
        if self._use_graphs:
            with capturing(self._graphs, self._device):
                self._each_stage(self._capture)

    def _each_stage(self, work: Callable[[Stage], None]) -> None:
        done: set[Stage] = set()
        while stages := [stage for stage in stages_of(self._grid, self._memory.sizes) if stage not in done]:
            # A stage that does not fit may leave one in its place that was not there before.
            for stage in stages:
                done.add(stage)
                length = stage.length if isinstance(stage, Prefill) else self._grid.lengths[0]
                fit(self._grid, stage, stage.rows, length, functools.partial(work, stage))

    def _try(self, stage: Stage) -> None:
        with self._on_stream():
            for _ in range(2 if self._cuda else 1):  # libraries settle in the first, the allocator in the second
                self._computation.try_out(stage)
        if self._stream is not None:
            self._stream.synchronize()

    def _capture(self, stage: Stage) -> None:
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            self._computation.compute(stage)
        self._graphs[stage] = graph

    # -- serving ---------------------------------------------------------------------------------------------------

    def launch(self, chunk: Chunk, fill: Fill) -> Pending:
        """Fill host memory, and begin the run if none is on the device; its steps are made in ``wait``."""
        slot = self._slots[self._next]
        if slot.filled is not None:
            slot.filled.synchronize()  # the copy of a run that failed may not have been waited for
        layout = self._memory.sizes.layout(chunk.shape)
        arrays = slot.inputs.arrays(layout)
        arrays[LENGTHS].fill(chunk.shape.length)
        wishes = np.empty(chunk.rows, dtype=object)
        inputs = {name: arrays[name] for name in self._grid.inputs}
        fill({**inputs, WISHES: wishes, LENGTHS: arrays[LENGTHS]})
        run = Run(self._finish, slot, chunk, layout, list(wishes), arrays[LENGTHS][: chunk.rows].copy())
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

    def _begin(self, run: Run) -> None:
        """Read the prompts and choose the first tokens; an error is kept for the run that it belongs to."""
        shape = run.chunk.shape
        try:
            with self._on_stream():
                size = run.layout.nbytes
                self._memory.inputs[:size].copy_(run.slot.inputs.tensor[:size], non_blocking=True)
                if run.slot.filled is not None:
                    run.slot.filled.record(self._stream)
                self._do(run, Prefill(shape.rows, shape.length, shape.full))
                self._choose(run)
        except requests_fault() as error:
            run.error = error

    def _finish(self, run: Run) -> Results:
        try:
            if run.error is not None:
                raise run.error
            followers = [Follower(wish, self._text_of) for wish in run.wishes]
            self._follow(run, followers)
            if run.missed:
                self.counts.graph_misses += 1
            else:
                self.counts.graph_hits += 1
            return results(followers, run.prompt_tokens, self._most)
        finally:
            self._flying.remove(run)
            if self._flying:
                self._begin(self._flying[0])

    def _follow(self, run: Run, followers: Sequence[Follower]) -> None:
        if not run.launched:
            raise RuntimeError("a run is waited for that was never begun")
        going = list(enumerate(followers))
        for step in range(run.steps):
            with self._on_stream():
                while run.launched <= min(step + self._lag, run.steps - 1):
                    rows = run.chunk.shape.rows
                    span = self._memory.sizes.span(rows, run.chunk.shape.length + run.launched)
                    self._do(run, Decode(rows, span))
                    self._choose(run)
            if run.slot.written:
                run.slot.written[step % len(run.slot.written)].synchronize()
            tokens = run.slot.tokens[step].tolist()
            going = [(row, follower) for row, follower in going if follower.goes_on(tokens[row])]
            if not going:
                return

    def _choose(self, run: Run) -> None:
        """Choose the next tokens, and send them to the host."""
        rows, slot = run.chunk.shape.rows, run.slot
        self._do(run, Pick(rows, run.sampled))
        slot.tokens_out[run.launched, :rows].copy_(self._memory.told[:rows], non_blocking=True)
        if slot.written:
            slot.written[run.launched % len(slot.written)].record(self._stream)
        run.launched += 1

    def _do(self, run: Run, stage: Stage) -> None:
        graph = self._graphs.get(stage)
        if graph is None:
            run.missed = True
            self._computation.compute(stage)
        else:
            graph.replay()

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        stream = contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with torch.inference_mode(), stream:
            yield

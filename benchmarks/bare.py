"""The best loop that a process can run by itself: BERT in one CUDA graph, fresh ids in, logits out, again and again.

Nothing of it serves anybody; it says what the GPU gives, under MPS if the environment names a daemon.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

#: Name of the attention below; transformers has no mask function of that name, and so builds no mask.
_ATTENTION = "bare_sdpa"
#: Seconds for all processes to load and capture.
_LOADING_S = 300.0
#: Seconds that all run before anything is counted.
_WARM_UP_S = 1.0
#: Batches of fresh token ids on the host, used in turn.
_FRESH = 16


def _attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **unused: Any
) -> tuple[Any, None]:
    """Attention without a mask, whose kernel is then the flash one. query, key, value: [rows, heads, length, size]."""
    from torch.nn.functional import scaled_dot_product_attention

    out = scaled_dot_product_attention(query, key, value, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def _load(folder: Path, cuda: bool) -> Any:
    """The model without a mask.

    Under capture transformers' own "sdpa" builds a [rows, 1, length, length] mask even when none is given, since it
    cannot look at the values then; with a mask the flash kernel cannot be used.
    """
    import torch
    import transformers

    transformers.AttentionInterface.register(_ATTENTION, _attention)
    dtype = torch.float16 if cuda else torch.float32
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=dtype, attn_implementation=_ATTENTION, local_files_only=True
    )
    return model.to("cuda" if cuda else "cpu").eval()


def _captured(model: Any, batch: int, length: int, seed: int) -> Callable[[int], None]:
    """One iteration with a CUDA graph: the number of a fresh batch in, its logits on the host after it returned."""
    import torch

    torch.manual_seed(seed)
    vocabulary = model.config.vocab_size
    fresh = [torch.randint(0, vocabulary, (batch, length)).pin_memory() for _ in range(_FRESH)]
    ids = fresh[0].cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(input_ids=ids)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(input_ids=ids).logits
    answer = torch.empty(logits.shape, dtype=logits.dtype).pin_memory()
    stream = torch.cuda.current_stream()

    def iterate(number: int) -> None:
        ids.copy_(fresh[number % _FRESH], non_blocking=True)
        graph.replay()
        answer.copy_(logits, non_blocking=True)
        stream.synchronize()

    for number in range(3):
        iterate(number)
    expected = model(input_ids=fresh[2].cuda()).logits.cpu()
    if not torch.allclose(answer, expected, atol=1e-2):
        raise RuntimeError("the captured graph and the eager model do not agree")
    return iterate


def _eager(model: Any, batch: int, length: int, seed: int) -> Callable[[int], None]:
    """The same on a CPU, to try this file without a GPU."""
    import torch

    torch.manual_seed(seed)
    fresh = [torch.randint(0, model.config.vocab_size, (batch, length)) for _ in range(_FRESH)]

    def iterate(number: int) -> None:
        model(input_ids=fresh[number % _FRESH]).logits.numpy()

    return iterate


def _work(number: int, options: argparse.Namespace, ready: Barrier, begin: Synchronized[float], done: Any) -> None:
    """One process: load, wait for the others, count the iterations that end in the common window."""
    try:
        import torch

        if options.cpu:
            torch.set_num_threads(1)
        with torch.inference_mode():
            model = _load(options.model, not options.cpu)
            iterate = (_eager if options.cpu else _captured)(model, options.batch, options.length, number)
            ready.wait(_LOADING_S)
            turn = counted = 0
            while True:
                iterate(turn)
                turn += 1
                # 0 until the parent has said when; what ran before warms up.
                now, first = time.monotonic(), begin.value
                if first and now >= first + options.seconds:
                    break
                counted += bool(first and now >= first)
        done.put(counted)
    except BaseException:
        ready.abort()
        raise


def run(options: argparse.Namespace) -> dict[str, float | int]:
    """Run all processes.

    Returns:
        ``sequences_per_s`` of all processes together, and the settings.

    Raises:
        RuntimeError: One of them failed; its traceback is on stderr.
    """
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(options.processes + 1), context.Queue()
    begin = context.Value("d", 0.0)
    arguments = [(number, options, ready, begin, done) for number in range(options.processes)]
    started = [context.Process(target=_work, args=one) for one in arguments]
    for process in started:
        process.start()
    try:
        ready.wait(_LOADING_S)
        begin.value = time.monotonic() + _WARM_UP_S
        counts = [done.get(timeout=_WARM_UP_S + options.seconds + 60) for _ in started]
    except threading.BrokenBarrierError as error:
        raise RuntimeError("a process failed before it was ready") from error
    finally:
        for process in started:
            process.join(10)
            process.kill()
    return {
        "sequences_per_s": sum(counts) * options.batch / options.seconds,
        "processes": options.processes,
        "batch": options.batch,
        "length": options.length,
        "seconds": options.seconds,
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="transformers model folder")
    options.add_argument("--processes", type=int, default=4)
    options.add_argument("--batch", type=int, default=8, help="sequences in one run (default: %(default)s)")
    options.add_argument("--length", type=int, default=128, help="tokens of each (default: %(default)s)")
    options.add_argument("--seconds", type=float, default=5.0, help="counted time (default: %(default)s)")
    options.add_argument("--cpu", action="store_true", help="eager and fp32 on the CPU, to try it without a GPU")
    return options


if __name__ == "__main__":
    print(json.dumps(run(parser().parse_args())))

"""How a study was made, in words that a reader without the documentation understands."""

from __future__ import annotations

from ts_mps.bench.records import Study
from ts_mps.bench.report.parts import Part
from ts_mps.bench.statistics import FEWEST, RULED_OUT, SIGNIFICANCE


def method(study: Study) -> Part:
    """What was done, why so, and what it can and cannot show."""
    loads = {run.result.load.kind for run in study.runs if run.result is not None}
    text = [
        "The unit is the run: a fresh server (and a fresh MPS daemon where MPS is on), a warm-up that is dropped, then "
        "one counted load. A run with MPS on counts only if every worker was a proven client of the daemon, one with "
        "MPS off only if none was. One that does not count is made once more at the end of its block; whether a run "
        "counts does not depend on its figures.",
        "Blocks are interleaved: each block runs every arm once, in an order drawn anew. A machine that warms up, or "
        "gets a neighbour, in the course of an hour then troubles all arms alike; with all runs of one arm first, it "
        "would look like a difference between them.",
        "Comparisons are paired: an arm is divided by the other one in the same block, so that what the blocks do not "
        "share drops out. The ratio is the median over the pairs, with a 95 % bootstrap interval. The p is that of an "
        "exact permutation test on ranks (Wilcoxon's signed rank): how often chance alone would give a difference of "
        "this size if both arms were the same.",
        f"A verdict needs at least {FEWEST} pairs. Better or worse: p is at most {SIGNIFICANCE:g} and the whole "
        "interval lies beyond the margin. No difference: the median lies within the margin, and a difference of "
        f"{RULED_OUT:g} times the margin is ruled out on both sides. Everything else is not decided: more blocks may "
        "decide it. Each verdict stands alone; nothing is corrected for there being many.",
        "Latency percentiles come from the counted latencies of all runs together, never from averages of percentiles.",
    ]
    if "closed" in loads:
        text.append(
            "A closed loop keeps a fixed number of requests in flight and shows what the server can carry. It cannot "
            "show what users wait for: when the server stalls, it stops asking."
        )
    if loads - {"closed"}:
        text.append(
            "An open loop sends at planned instants whether answers come or not, and counts latency from the planned "
            "instant, so that a stall counts for everybody whom it kept waiting. A run in which the generator itself "
            "fell behind does not count."
        )
    text.append(f"Orders, arrivals and payloads were drawn from the seed {study.seed}.")
    return Part("method", "Method", tuple(text))

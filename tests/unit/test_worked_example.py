"""docs/explanation/planning.md: its example is what `ts-mps plan` prints, and its arithmetic is right.

The arithmetic is done here again, from the page's formulas and the example's files, without the planner.
"""

import itertools
import json
import os
import re
import shlex
from importlib import import_module
from math import floor, log
from pathlib import Path

import pytest

from ts_mps.cli.main import main
from ts_mps.errors import PlanError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/explanation/planning.md").read_text()
EXAMPLE = PAGE.partition("## An example to check by hand\n")[2].partition("\n## ")[0]
FOLDER = ROOT / "docs/explanation/planning"
GIB = 2**30
LEAST_GAIN, MARGIN, SERVER = 0.03, 0.05, 70 * 2**20
MODELS = ("search", "rank")


@pytest.fixture
def folder(monkeypatch):
    for name in [*os.environ]:
        if name.startswith("TS_") or name in ("OMP_NUM_THREADS", "CUDA_DEVICE_MAX_CONNECTIONS"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(FOLDER)


def printed():
    """The commands of the page, and what it says that they print."""
    return re.findall(r"```sh\n(?:cd (\S+)\n)?ts-mps ([^\n]*)\n```\n\n```\n(.*?)```", EXAMPLE, re.DOTALL)


def rows(first):
    """The cells of the table whose first column has this heading, without emphasis."""
    lines = EXAMPLE.splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith(f"| {first} |")) + 2
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[begin:])
    return [[cell.strip() for cell in line.replace("*", "").strip("|").split("|")] for line in table]


def numbers(cell):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", cell)]


def profile(name):
    return json.loads((FOLDER / f"{name}.profile.json").read_text())


def measured(name, mps):
    return {run["workers"]: run["requests_per_second"] for run in profile(name)["scaling"] if run["mps"] == mps}


def throughputs(name, mps):
    """T(n), from T(0) on; linear between measured numbers of workers."""
    known = sorted({0: 0.0, **measured(name, mps)}.items())
    found = [0.0]
    for (low, before), (high, after) in itertools.pairwise(known):
        found += [before + (after - before) * step / (high - low) for step in range(1, high - low + 1)]
    return found


def candidate(search, rank, mps):
    """(S, requests/s of search, of rank, objective) of so many workers on the one GPU."""
    tables = [throughputs(name, mps) for name in MODELS]
    sharing = max(1.0, sum(max(t[: n + 1]) / max(t) for t, n in zip(tables, (search, rank), strict=True)))
    made = [t[n] / sharing for t, n in zip(tables, (search, rank), strict=True)]
    return sharing, *made, sum(map(log, made)) - log(1 + LEAST_GAIN) * (search + rank)


def candidates(mps):
    counts = itertools.product(*(range(1, len(throughputs(name, mps))) for name in MODELS))
    return {count: candidate(*count, mps) for count in counts}


def worker_bytes(name):
    (run,) = profile(name)["runs"]
    return run["context"] + run["weights"] + run["peak"]


def budget():
    (gpu,) = json.loads((FOLDER / "machine.json").read_text())["gpus"]
    return gpu["memory_total"] * (1 - MARGIN) - SERVER


def test_the_page_shows_what_the_commands_print(folder, capsys):
    plan, refusal = printed()
    assert ROOT / plan[0] == FOLDER
    for (_, words, shown), expected in ((plan, 0), (refusal, PlanError.exit_code)):
        assert main(shlex.split(words)) == expected
        out, err = capsys.readouterr()
        assert [line.rstrip() for line in (out + err).splitlines()] == shown.splitlines()


def test_the_plan_is_the_best_candidate(folder, capsys):
    assert main([*shlex.split(printed()[0][1]), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    every = {mps: candidates(mps) for mps in (True, False)}
    mps, best = max(((mps, count) for mps in every for count in every[mps]), key=lambda at: every[at[0]][at[1]][3])
    assert plan["mps"] == mps
    assert [(model["name"], model["workers"]) for model in plan["models"]] == list(zip(MODELS, best, strict=True))
    made = [model["requests_per_second"] for model in plan["models"]]
    assert [*made, plan["objective"]] == pytest.approx(every[mps][best][1:])
    assert plan["gpus"][0]["memory_budget"] == floor(budget())
    assert plan["gpus"][0]["memory_planned"] == sum(map(lambda name, n: n * worker_bytes(name), MODELS, best))


def test_the_measurements_of_the_page_are_those_of_the_files():
    for name, *cells, memory in rows("Requests/s of"):
        columns = itertools.product((True, False), (1, 2, 4))
        shown = {column: numbers(cell) for column, cell in zip(columns, cells, strict=True)}
        for mps in (True, False):
            known = measured(name, mps)
            assert known == {n: rate[0] for (on, n), rate in shown.items() if on == mps and rate}
        context, weights, peak, total = numbers(memory)
        (run,) = profile(name)["runs"]
        assert [context, weights, peak] == [run[part] / GIB for part in ("context", "weights", "peak")]
        assert total == worker_bytes(name) / GIB


def test_every_candidate_is_shown_with_its_arithmetic():
    worth = candidates(mps=True)
    shown = rows("Workers of search")
    assert {(int(row[0]), int(row[1])) for row in shown} == set(worth)
    for row in shown:
        count = (int(row[0]), int(row[1]))
        sharing, *made, value = worth[count]
        tables = [throughputs(name, True) for name in MODELS]
        uses = [t[n] / max(t) for t, n in zip(tables, count, strict=True)]
        rates = [t[n] for t, n in zip(tables, count, strict=True)]
        assert numbers(row[2]) == pytest.approx([*uses, sharing])
        for cell, rate, answer in zip(row[3:5], rates, made, strict=True):
            assert numbers(cell) == pytest.approx([rate, sharing, round(answer, 1)])
        assert numbers(row[5]) == [round(log(answer), 3) for answer in made]
        assert numbers(row[6]) == [round(log(1 + LEAST_GAIN) * sum(count), 3)]
        assert numbers(row[7]) == [round(value, 3)]
    (bold,) = re.findall(r"^\| \*\*(\d)\*\* \| \*\*(\d)\*\* .*\*\*([\d.]+)\*\* \|$", EXAMPLE, re.MULTILINE)
    assert (int(bold[0]), int(bold[1])) == max(worth, key=lambda count: worth[count][3])


def test_the_sentences_of_the_example_are_right():
    text = " ".join(EXAMPLE.split())
    on, off = candidates(mps=True), candidates(mps=False)
    assert max(off, key=lambda count: off[count][3]) == (1, 1)
    _, search, rank, value = off[1, 1]
    assert f"= {log(search):.3f} + {log(rank):.3f} - {2 * log(1.03):.3f} = {value:.3f}" in text
    best, fourth, second = on[3, 1], on[4, 1], on[3, 2]
    gain, loss = fourth[1] / best[1], fourth[2] / best[2]
    assert f"add {fourth[1]:.1f} / {best[1]:.1f} - 1 = {100 * (gain - 1):.1f} % to it" in text
    assert f"take {100 * (1 - loss):.1f} % from rank" in text
    assert f"{gain:.3f} x {loss:.3f} = {gain * loss:.3f} is worth as much as {100 * (gain * loss - 1):.1f} %" in text
    assert gain - 1 > LEAST_GAIN > gain * loss - 1
    assert f"add {second[2]:.1f} / {best[2]:.1f} - 1 = {100 * (second[2] / best[2] - 1):.1f} %" in text
    assert f"= {budget() / GIB:.1f} GiB of memory" in text
    asked = 12 * worker_bytes("rank") + worker_bytes("search")
    assert f"12 x 4 + 2 = {asked / GIB:.0f} GiB" in text and asked > budget()
    left = budget() - worker_bytes("search")
    assert f"{left / GIB:.1f} are left" in text and f"which is {left // worker_bytes('rank'):.0f} workers" in text


def test_the_figures_of_the_page_are_those_of_the_code():
    shown = re.findall(r"^\| `([\w.]+)\.([A-Z_]+)` \| (\S.*?) \|", PAGE, re.MULTILINE)
    assert len(shown) >= 11
    for module, name, value in shown:
        factor, _, power = value.partition(" x 2**")
        assert getattr(import_module(module), name) == float(factor) * 2 ** int(power or 0), f"{module}.{name}"

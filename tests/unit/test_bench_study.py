"""A study's file and the loop that fills it: order, failures, interrupts, full disks, going on."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from benching import MACHINE, arm, result, run, study

from ts_mps.bench import study as module
from ts_mps.bench.conductor import Conductor, Progress, Search
from ts_mps.bench.records import Arm, Load, Run, Study
from ts_mps.bench.report.reading import read_study
from ts_mps.bench.schedule import Turn, make_schedule
from ts_mps.bench.study import NotKept, StudyFile, resumed
from ts_mps.errors import PreflightError

ARMS = (arm(1), arm(2), arm(2, mps=True))
RATES = {ARMS[0].name: 100.0, ARMS[1].name: 150.0, ARMS[2].name: 200.0}


def empty(**fields: object) -> Study:
    return study(blocks=3, **{"runs": [run(ARMS[0])], "arms": ARMS, "seed": 5, **fields})


def new_file(tmp_path: Path) -> StudyFile:
    return StudyFile(tmp_path / "study.json", replace(empty(), runs=()))


class Machine:
    """Plays runs; ``failing`` arms fail, and the call of number ``interrupt`` is interrupted."""

    def __init__(self, failing: tuple[str, ...] = (), interrupt: int = -1) -> None:
        self.turns: list[Turn] = []
        self.loads: list[Load] = []
        self.failing, self.interrupt, self.rates = failing, interrupt, RATES

    def __call__(self, turn: Turn, one: Arm, load: Load) -> Run:
        if len(self.turns) == self.interrupt:
            raise KeyboardInterrupt
        self.turns.append(turn)
        self.loads.append(load)
        if one.name in self.failing:
            return run(one, turn.block, failure="Its model is broken.", position=turn.position)
        if load.kind == "closed":
            measured = replace(result(self.rates[one.name]), load=load)
        else:
            # What it cannot answer waits, and is late.
            late = load.rate > 0.6 * RATES[one.name]
            measured = replace(result(load.rate, 900.0 if late else 20.0, load.kind, load.rate), load=load)
        return run(one, turn.block, measured, position=turn.position)


def closed(block: int) -> Load:
    return Load("closed", 8, 0.0, 10.0, 1.0, block)


def poisson(rate: float) -> Load:
    return Load("poisson", 0, rate, 10.0, 1.0, 5)


def nothing(_: Progress) -> None:
    pass


def test_all_turns_are_run_as_planned_and_kept(tmp_path):
    file, machine = new_file(tmp_path), Machine()
    told: list[Progress] = []
    Conductor(file, machine, told.append).blocks(closed)
    file.end("")
    assert tuple(machine.turns) == make_schedule([one.name for one in ARMS], 3, 5)
    assert [load.seed for load in machine.loads] == [0, 0, 0, 1, 1, 1, 2, 2, 2], "one load for all arms of a block"
    assert read_study(file.path) == file.study
    assert [one.planned for one in told] == [9] * 10 and [one.done for one in told] == list(range(10))
    assert told[0].seconds_left is None and told[-1].seconds_left == 0 and told[-1].next == ""
    assert all(one.run == made for one, made in zip(told[1:], file.study.runs, strict=True))


def test_every_run_is_in_the_file_before_the_next_begins(tmp_path):
    file, machine = new_file(tmp_path), Machine()
    seen: list[int] = []

    def measure(turn: Turn, one: Arm, load: Load) -> Run:
        seen.append(len(read_study(file.path).runs) if file.path.exists() else 0)
        return machine(turn, one, load)

    Conductor(file, measure, nothing).blocks(closed)
    assert seen == list(range(9))


def test_what_is_interrupted_is_gone_on_with(tmp_path):
    file = new_file(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Conductor(file, Machine(interrupt=4), nothing).blocks(closed)
    file.end("It was interrupted by SIGINT.")
    kept = read_study(file.path)
    assert len(kept.runs) == 4 and kept.incomplete == "It was interrupted by SIGINT."
    fresh = replace(empty(), runs=(), started="another time")
    again = StudyFile(file.path, resumed(kept, fresh, file.path))
    machine = Machine()
    Conductor(again, machine, nothing).blocks(closed)
    again.end("")
    assert len(machine.turns) == 5
    runs = read_study(file.path).runs
    assert [(one.block, one.arm) for one in runs] == [
        (turn.block, turn.arm) for turn in make_schedule([one.name for one in ARMS], 3, 5)
    ]


def test_an_arm_that_fails_twice_in_a_row_is_left_out(tmp_path):
    file, machine = new_file(tmp_path), Machine(failing=(ARMS[1].name,))
    conductor = Conductor(file, machine, nothing)
    conductor.blocks(closed)
    assert [turn.arm for turn in machine.turns].count(ARMS[1].name) == 2
    assert [turn.arm for turn in machine.turns].count(ARMS[2].name) == 3
    assert conductor.left_out() == f"{ARMS[1].name} was left out after 2 failures in a row: Its model is broken."
    failed = [one for one in file.study.runs if one.failure]
    assert len(failed) == 2 and len(file.study.runs) == 8, "failed runs are kept"


def test_failures_that_are_not_in_a_row_leave_nothing_out(tmp_path):
    file, machine = new_file(tmp_path), Machine()

    def measure(turn: Turn, one: Arm, load: Load) -> Run:
        machine.failing = (ARMS[1].name,) if turn.block in (0, 2) and turn.position < 3 else ()
        return machine(turn, one, load)

    told: list[Progress] = []
    conductor = Conductor(file, measure, told.append)
    conductor.blocks(closed)
    assert len(machine.turns) == 11 and conductor.left_out() == ""
    again = [turn for turn in machine.turns if turn.position >= 3]
    assert [(turn.block, turn.arm) for turn in again] == [(0, ARMS[1].name), (2, ARMS[1].name)]
    assert {(one.block, one.arm) for one in file.study.runs if one.counts} == {
        (block, one.name) for block in range(3) for one in ARMS
    }, "no pair is missing"
    assert [one.block for one in file.study.runs] == sorted(one.block for one in file.study.runs)
    assert told[-1].planned == told[-1].done == 11


def test_the_baseline_comes_to_the_front(tmp_path):
    arms = (arm(1, 1), arm(1, 8), arm(2, 8))
    file = StudyFile(tmp_path / "study.json", replace(empty(), arms=arms, runs=()))
    first = Machine()
    first.rates = {arms[0].name: 50.0, arms[1].name: 90.0, arms[2].name: 200.0}
    Conductor(file, first, nothing).blocks(closed)
    assert [one.name for one in file.study.arms] == [arms[1].name, arms[0].name, arms[2].name]
    again = resumed(file.study, replace(empty(), arms=arms, runs=()), file.path)
    machine = Machine()
    Conductor(StudyFile(file.path, again), machine, nothing).blocks(closed)
    assert machine.turns == [], "another order of the arms is the same plan"


def test_rates_are_looked_for_on_the_best_arms_by_turns(tmp_path):
    file, machine = new_file(tmp_path), Machine()
    conductor = Conductor(file, machine, nothing)
    conductor.blocks(closed)
    begun = len(machine.turns)
    conductor.rates(poisson, Search(objective_ms=100.0, steps=5))
    turns, loads = machine.turns[begun:], machine.loads[begun:]
    assert [turn.arm for turn in turns] == [ARMS[1].name, ARMS[2].name] * 5
    assert [turn.block for turn in turns] == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7], "no block of the closed loops"
    for place, truth in enumerate((0.6 * 150.0, 0.6 * 200.0)):
        tried = [load.rate for load in loads[place::2]]
        assert abs(max(rate for rate in tried if rate <= truth) - truth) < 200 / 2**5
    # Broken off in the middle, it goes on with the rates that are missing.
    kept = replace(file.study, runs=file.study.runs[: begun + 3])
    again, rest = StudyFile(file.path, kept), Machine()
    Conductor(again, rest, nothing).rates(poisson, Search(objective_ms=100.0, steps=5))
    assert [load.rate for load in rest.loads] == [load.rate for load in loads[3:]]
    assert again.study.runs == file.study.runs


def test_an_arm_that_is_too_fast_for_the_generator_is_not_left_out(tmp_path):
    file, machine = new_file(tmp_path), Machine()
    conductor = Conductor(file, machine, nothing)
    conductor.blocks(closed)

    def measure(turn: Turn, one: Arm, load: Load) -> Run:
        made = machine(turn, one, load)
        assert made.result is not None
        return made if load.rate < 30 else replace(made, result=replace(made.result, void="It fell behind."))

    conductor = Conductor(file, measure, nothing)
    conductor.rates(poisson, Search(objective_ms=100.0, steps=6))
    tried = [one.result for one in file.study.runs if one.arm == ARMS[2].name and one.result]
    rates = [one.load.rate for one in tried if one.load.kind == "poisson"]
    assert rates[:3] == [100.0, 50.0, 25.0] and len(rates) == 6, "lower where the generator fell behind, to the end"
    assert conductor.left_out() == ""


def test_a_full_disk_ends_it_and_leaves_the_last_good_file(tmp_path, monkeypatch):
    file, machine = new_file(tmp_path), Machine()
    written = 0

    def write(path: Path, value: object) -> None:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_text(json.dumps(value))

    monkeypatch.setattr(module, "write_json", write)
    with pytest.raises(NotKept, match=r"No space left on device.*still whole") as caught:
        Conductor(file, machine, nothing).blocks(closed)
    assert "--resume" in caught.value.remedy
    assert len(read_study(file.path).runs) == 3


def test_a_folder_that_may_not_be_written_is_told(tmp_path):
    file = StudyFile(tmp_path / "gone" / "study.json", empty())
    with pytest.raises(NotKept, match="No such file or directory"):
        file.save()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"blocks": 4}, "its number of blocks is 3, and this call's is 4"),
        ({"seed": 6}, "seed"),
        ({"settings": {"blocks": 10, "seconds": 2.0}}, "its setting differs from this call's: blocks was 3"),
        ({"workload": {"name": "text", "model": "other", "payload_bytes": 512}}, 'model was "bert-base"'),
        ({"arms": ARMS[:2]}, "its arms differ from this call's: 2 workers x 8, MPS on"),
        ({"machine": {**MACHINE, "host": "bench-2"}}, "host was bench-1 and is bench-2"),
        ({"machine": {**MACHINE, "versions": {}}}, "not the machine"),
        ({"machine": {**MACHINE, "commit": "4567def"}}, "commit was 0123abc and is 4567def"),
        ({"machine": {**MACHINE, "cpu_quota": 8.0}}, "cpu_quota was None and is 8.0"),
        (
            {"machine": {**MACHINE, "environment": ["OMP_NUM_THREADS=1"]}},
            "environment was [] and is ['OMP_NUM_THREADS=1']",
        ),
    ],
)
def test_another_study_is_not_gone_on_with(change, sentence):
    before = empty(settings={"blocks": 3, "seconds": 2.0})
    now = replace(before, **change)
    with pytest.raises(PreflightError) as caught:
        resumed(before, now, Path("s.json"))
    assert sentence in caught.value.what


def test_what_a_file_makes_of_a_tuple_is_no_difference(tmp_path):
    file = StudyFile(tmp_path / "study.json", empty(settings={"workers": (1, 2)}))
    file.save()
    now = empty(settings={"workers": (1, 2)})
    assert resumed(read_study(file.path), now, file.path).runs == file.study.runs

"""Answers that no control program was seen to give: each is parsed, or refused with a sentence, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ts_mps.errors import MpsError
from ts_mps.mps.control import ClientProcess, Control, UnexpectedAnswer

ASK: list[Callable[[Control], object]] = [
    Control.servers,
    lambda control: control.clients(462),
    lambda control: control.server_status(462),
    Control.processes,
    Control.devices,
    lambda control: control.start_server(0),
    lambda control: control.terminate_client(462, 499),
    lambda control: control.quit(1),
    Control.default_active_thread_percentage,
]


class Scripted(Control):
    """A control whose daemon prints one given text."""

    def __init__(self, text: str) -> None:
        self.pipe = Path("/run/pipe")
        self._text = text

    def ask(self, command: str, *, wait: float = 0.0) -> str:
        return self._text


@pytest.mark.parametrize("ask", ASK)
@given(answer=st.text(alphabet="0123456789. \nGPUactiveINF-:", max_size=60))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_answer_is_parsed_or_refused(ask: Callable[[Control], object], answer: str):
    try:
        ask(Scripted(answer))
    except UnexpectedAnswer as error:
        assert "/run/pipe" in error.what
        assert error.details == answer.strip()


@given(st.lists(st.integers(1, 2**22), max_size=48))
def test_pids_come_back_as_printed(pids: list[int]):
    assert Scripted("".join(f"{pid}\n" for pid in pids)).clients(462) == tuple(pids)


def test_ps_command_with_blanks():
    answer = (
        "PID       ID        SERVER\n476       1         462     GPU-39f8   4026531836     /opt/my python/python3\n"
    )
    assert Scripted(answer).processes() == (
        ClientProcess(476, 1, 462, "GPU-39f8", 4026531836, "/opt/my python/python3"),
    )


def test_devices_are_listed_once():
    uuid = "GPU-39f82936-603a-ee4f-ceb1-14ac504a07be"
    assert Scripted(f"Default\n0 {uuid} H200\nServer 462\n0 {uuid} H200\n").devices() == (uuid,)


@pytest.mark.parametrize("state", ["INITIALIZING", "ACTIVE", "FAULT"])
def test_states(state: str):
    assert Scripted(f"{state}\n").server_status(462) == state


def test_program_that_fails_for_another_reason(short_dir: Path):
    program = short_dir / "nvidia-cuda-mps-control"
    program.write_text("#!/bin/sh\necho 'Cannot authenticate' >&2\nexit 1\n")
    program.chmod(0o755)
    control = Control(short_dir, environ={"PATH": f"{short_dir}:/usr/bin:/bin"})
    with pytest.raises(UnexpectedAnswer) as caught:
        control.servers()
    assert caught.value.details == "Cannot authenticate"
    assert not control.answers()


def test_program_that_is_missing(short_dir: Path):
    with pytest.raises(MpsError, match="was not found on PATH"):
        Control(short_dir, environ={"PATH": str(short_dir)})

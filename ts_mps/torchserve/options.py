"""Our own options of ``ts-mps start``: each a flag and a variable, and the texts that it takes."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _one_of(*choices: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(choices)}")
        return text

    return convert


def seconds(least: float) -> Callable[[str], float]:
    """A finite number of seconds: a wait until infinity, or until NaN, would never end."""

    def convert(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not (math.isfinite(found) and found >= least):
            raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds from {least:g} on")
        return found

    return convert


def _workers(text: str) -> str:
    if not re.fullmatch(r"(.+=)?0*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither a number of workers (4) nor a model and its number (NAME=4)"
        )
    return text


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 on")
    return int(text)


def host_and_port(text: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:8083", "localhost:8083" or "[::1]:8083".

    Raises:
        argparse.ArgumentTypeError: It is none of these.
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]\s]+)):([0-9]{1,5})", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise argparse.ArgumentTypeError(f"'{text}' is no address such as 127.0.0.1:8083 or [::1]:8083")
    return match[1] or match[2], int(match[3])


def _text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


@dataclass(frozen=True)
class Option:
    """One option of ours, as a flag and as a variable.

    Args:
        flag: ``--like-this``; the field of :class:`ts_mps.torchserve.arguments.StartArguments` is ``like_this``.
        help: What it does, for ``--help`` and the reference.
        convert: Text to value; None for a switch (``--x`` and ``--no-x``).
        metavar: How ``--help`` shows the value.
        many: Whether it takes several values; the variable separates them by blanks or commas.
        variable: The environment variable, where it is not TS_MPS_ and the flag's name.
    """

    flag: str
    help: str
    convert: Callable[[str], Any] | None = None
    metavar: str | None = None
    many: bool = False
    variable: str = ""

    @property
    def field(self) -> str:
        """Name of the field in :class:`ts_mps.torchserve.arguments.StartArguments`."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def environment_variable(self) -> str:
        """The variable that stands for the flag where the flag is not given."""
        return self.variable or f"TS_MPS_{self.field.upper()}"

    def read(self, text: str) -> Any:
        """The value of the variable's text.

        Raises:
            argparse.ArgumentTypeError: It is none that the option takes.
        """
        if self.convert is None:
            return _switch(text)
        if self.many:
            return [self.convert(part) for part in re.split(r"[\s,]+", text.strip())]
        return self.convert(text)


def _switch(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return values[text.strip().lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(values)}") from None


OPTIONS: tuple[Option, ...] = (
    Option(
        "--mps",
        "auto: use MPS where there is a usable GPU, say so where there is none; on: fail without one; "
        "off: TorchServe's workers without MPS (default: auto)",
        _one_of("auto", "on", "off"),
        "auto|on|off",
    ),
    Option(
        "--workers",
        "workers of every model (4) or of one (NAME=4); beats minWorkers of the archive and of the config file",
        _workers,
        "N|NAME=N",
        many=True,
    ),
    Option(
        "--plan",
        "start what a file says that `ts-mps plan -o` wrote for this machine and these models; auto: plan now, and "
        "let the plan say how many workers a model gets for which nobody set a number, and whether MPS is used",
        _text,
        "FILE|auto",
    ),
    Option(
        "--reserve",
        "MPS clients of each GPU's cap that the plan leaves free, for a worker that is replaced while its predecessor "
        "still dies, and for tools (default: 1, or what the settings say)",
        _count,
        "N",
    ),
    Option(
        "--settings",
        "file with the planner's settings (default: ./ts-mps.toml if there is one)",
        _text,
        "FILE",
    ),
    Option(
        "--cpu-affinity",
        "host cores of a worker: none: all; numa: those near its GPU; cores: its own share of those (default: numa)",
        _one_of("none", "numa", "cores"),
        "none|numa|cores",
    ),
    Option(
        "--exclusive",
        "put the GPUs into compute mode EXCLUSIVE_PROCESS while they serve, so that nothing gets past MPS "
        "(needs the right to change it)",
    ),
    Option(
        "--wait-timeout",
        "seconds until every worker must be ready (default: 300)",
        seconds(1),
        "SECONDS",
    ),
    Option(
        "--drain-timeout",
        "seconds that requests in flight get when the server is stopped (default: 30)",
        seconds(0),
        "SECONDS",
    ),
    Option(
        "--health-address",
        "where the guardian answers /live, /ready and /status over HTTP, such as 127.0.0.1:8083 (default: nowhere)",
        host_and_port,
        "HOST:PORT",
    ),
    Option("--name", "name of this instance; several may run side by side (default: default)", _text, "NAME"),
    Option(
        "--runtime-dir",
        "folder for sockets, plan and state (default: $XDG_RUNTIME_DIR/ts-mps, else /tmp/ts-mps-<uid>)",
        _text,
        "DIR",
        variable="TS_MPS_HOME",
    ),
    Option("--json", "print the result as one JSON object"),
)

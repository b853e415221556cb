"""The options of ``ts-mps start``: TorchServe's own, read by TorchServe's own parser, and ours."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ts.arg_parser import ArgParser

from ts_mps.errors import UsageError


@dataclass(frozen=True)
class StartArguments:
    """What ``ts-mps start`` was asked to do; times in seconds, None where an option was not given."""

    ts_config: str | None = None
    model_store: str | None = None
    workflow_store: str | None = None
    models: tuple[str, ...] = ()
    log_config: str | None = None
    cpp_log_config: str | None = None
    foreground: bool = False
    no_config_snapshots: bool = False
    plugins_path: str | None = None
    disable_token_auth: bool = False
    enable_model_api: bool = False
    start: bool = False
    stop: bool = False
    version: bool = False
    help: bool = False

    mps: str = "auto"
    workers: tuple[str, ...] = ()
    plan: str | None = None
    reserve: int | None = None
    settings: str | None = None
    cpu_affinity: str = "numa"
    exclusive: bool = False
    wait_timeout: float = 300.0
    drain_timeout: float = 30.0
    name: str = "default"
    runtime_dir: str | None = None
    json: bool = False


def _one_of(*choices: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(choices)}")
        return text

    return convert


def _seconds(least: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds >= least):
            raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds from {least:g} on")
        return seconds

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


def _text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


@dataclass(frozen=True)
class Option:
    """One option of ours, as a flag and as a variable.

    Args:
        flag: ``--like-this``; the field of :class:`StartArguments` is ``like_this``.
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
        """Name of the field in :class:`StartArguments`."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def environment_variable(self) -> str:
        """The variable that stands for the flag where the flag is not given."""
        return self.variable or f"TS_MPS_{self.field.upper()}"


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
        _seconds(1),
        "SECONDS",
    ),
    Option(
        "--drain-timeout",
        "seconds that requests in flight get when the server is stopped (default: 30)",
        _seconds(0),
        "SECONDS",
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


class _Parser(argparse.ArgumentParser):
    """argparse that raises where the original prints and exits."""

    def error(self, message: str) -> NoReturn:
        raise _usage(message, self.prog)


class _HelpAsked(Exception):
    pass


def _usage(message: str, command: str) -> UsageError:
    return UsageError(f"{command}: {message}.", f"See: {command} --help")


def _own_parser(command: str = "ts-mps start") -> argparse.ArgumentParser:
    # Without abbreviations: one of ours must never take a word that TorchServe's parser would complete.
    parser = _Parser(prog=command, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    group = parser.add_argument_group("MPS and the start", "each also by its variable; the flag beats it")
    for option in OPTIONS:
        text = f"{option.help} [{option.environment_variable}]"
        if option.convert is None:
            group.add_argument(option.flag, action=argparse.BooleanOptionalAction, help=text)
        elif option.many:
            group.add_argument(
                option.flag, type=option.convert, metavar=option.metavar, nargs="+", action="extend", help=text
            )
        else:
            group.add_argument(option.flag, type=option.convert, metavar=option.metavar, help=text)
    return parser


def _from_environment(option: Option, text: str, command: str) -> Any:
    try:
        if option.convert is None:
            return _switch(text)
        if option.many:
            return [option.convert(part) for part in re.split(r"[\s,]+", text.strip())]
        return option.convert(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(
            f"The environment variable {option.environment_variable}: {error}.", f"See: {command} --help"
        ) from error


def _switch(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return values[text.strip().lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(values)}") from None


def _torchserve_values(argv: Sequence[str], command: str) -> dict[str, Any]:
    """What TorchServe's own parser makes of ``argv``, its abbreviations included."""
    parser: Any = ArgParser.ts_parser()

    def raise_usage(message: str) -> NoReturn:
        raise _usage(message, command)

    def raise_help(*_: object) -> NoReturn:
        raise _HelpAsked

    parser.error = raise_usage
    parser.print_help = raise_help
    values: dict[str, Any] = vars(parser.parse_args(list(argv)))
    # TorchServe's own names say the opposite, or nothing.
    values["disable_token_auth"] = values.pop("token_auth")
    values["enable_model_api"] = values.pop("model_mode")
    values["models"] = tuple(values["models"] or ())
    return values


def parse(argv: Sequence[str], environ: Mapping[str, str], command: str = "ts-mps start") -> StartArguments:
    """Read the words after ``ts-mps start``, or after another verb that speaks of a start.

    Args:
        argv: The words, without the verb.
        environ: Where the TS_MPS_* variables are looked up; an empty one counts as not set.
        command: What complaints call the command.

    Returns:
        All options; ``help`` is True where ``--help`` was asked for, and then nothing else is to be relied on.

    Raises:
        UsageError: An unknown option, or a value that a flag or variable does not take.
    """
    own, rest = _own_parser(command).parse_known_args(list(argv))
    try:
        values = _torchserve_values(rest, command)
    except _HelpAsked:
        return StartArguments(help=True)
    for option in OPTIONS:
        if hasattr(own, option.field):
            values[option.field] = getattr(own, option.field)
        elif environ.get(option.environment_variable):
            values[option.field] = _from_environment(option, environ[option.environment_variable], command)
    values["workers"] = tuple(values.get("workers", ()))
    return StartArguments(**values)


def help_parser() -> argparse.ArgumentParser:
    """A parser that holds both groups of options, for ``--help`` and the generated reference; not for parsing."""
    return argparse.ArgumentParser(
        prog="ts-mps start",
        description="Start TorchServe with its workers as clients of NVIDIA's Multi-Process Service. "
        "The first options are TorchServe's own and mean what they mean there.",
        parents=[ArgParser.ts_parser(), _own_parser()],
        conflict_handler="resolve",
        add_help=False,
    )

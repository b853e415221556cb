"""The options of ``ts-mps start``: TorchServe's own, read by TorchServe's own parser, and ours."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ts.arg_parser import ArgParser

from ts_mps.errors import UsageError
from ts_mps.torchserve.options import OPTIONS, Option


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
    health_address: tuple[str, int] | None = None
    name: str = "default"
    runtime_dir: str | None = None
    json: bool = False


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
        return option.read(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(
            f"The environment variable {option.environment_variable}: {error}.", f"See: {command} --help"
        ) from error


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

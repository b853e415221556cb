"""TorchServe's configuration as TorchServe 0.12.0 itself would find it, and the file that we make from it.

Sources: ``ts/model_server.py`` (the launcher), and ConfigManager and FSSnapshotSerializer of the frontend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ts.model_server import load_properties

from ts_mps.errors import PreflightError, TsMpsError
from ts_mps.torchserve import properties
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.server_config import ServerConfig
from ts_mps.torchserve.variables import folded_in

__all__ = [
    "DATA",
    "ServerConfig",
    "check",
    "default_overrides",
    "effective",
    "last_snapshot",
    "launcher_properties",
    "load",
    "named_file",
    "write_effective",
]

DATA = Path(__file__).parent.parent / "data"

_VARIABLE = re.compile(r"\$\$([^$]+[^$])\$\$")
_SNAPSHOT_TIME = re.compile(r"\d{17}")
_READ_AT_START = (
    "inference_address",
    "management_address",
    "metrics_address",
    "grpc_inference_address",
    "grpc_management_address",
    "number_of_gpu",
    "default_workers_per_model",
    "initial_worker_port",
    "models",
    "model_snapshot",
)


def named_file(args: StartArguments, environ: Mapping[str, str]) -> str | None:
    """The configuration file that was named, as it was written: by TS_CONFIG_FILE, else by ``--ts-config``.

    Returns:
        None where none was named; also where TS_CONFIG_FILE is set but empty, which hides ``--ts-config``.

    Raises:
        TsMpsError: It is missing; exit code 1 as TorchServe's.
    """
    variable = environ.get("TS_CONFIG_FILE")
    named = args.ts_config if variable is None else variable
    if named and not Path(named).is_file():
        place = "--ts-config" if variable is None else "TS_CONFIG_FILE"
        raise TsMpsError(f"The configuration file {named} that {place} names does not exist.")
    return named or None


def launcher_properties(args: StartArguments, environ: Mapping[str, str]) -> dict[str, str]:
    """The named file as TorchServe's launcher reads it; decides about vmargs, plugins_path and model_store.

    Its syntax is poorer than Java's: no escapes, no continued lines, no separator but '='.

    Raises:
        TsMpsError: The file is missing or no text.
    """
    named = named_file(args, environ)
    if named is None:
        return {}
    try:
        values: dict[str, str] = load_properties(named)
    except (OSError, UnicodeDecodeError) as error:
        raise TsMpsError(f"TorchServe's launcher cannot read {named}: {error}.") from error
    return values


def load(args: StartArguments, environ: Mapping[str, str]) -> ServerConfig:
    """Find and read the configuration; relative paths count from the working directory, as for TorchServe.

    Raises:
        TsMpsError: A named file is missing.
        PreflightError: A line is malformed, or ``$$VARIABLE$$`` names a variable that is not set.
    """
    source, path, is_snapshot = _choose(args, environ)
    file = properties.read(path) if path else properties.Properties(None, {}, {})
    origins = {key: f"{path} line {line}" for key, line in file.lines.items()}
    # The launcher hands its own reading of model_store on as a flag, which Java prefers to the file.
    store = launcher_properties(args, environ).get("model_store")
    resolved = {key: _substitute(text, f"{origins[key]}: {key}", environ) for key, text in file.values.items()}
    if store:
        resolved["model_store"] = store
    for key, (value, flag) in _flags(args).items():
        resolved[key], origins[key] = value, flag
    if "workflow_store" not in resolved and "model_store" in resolved:
        resolved["workflow_store"], origins["workflow_store"] = resolved["model_store"], origins["model_store"]
    for variable, key in folded_in(resolved, environ).items():
        resolved[key], origins[key] = environ[variable], variable
    return ServerConfig(source, path, path if is_snapshot else None, file.values, resolved, origins)


def default_overrides(config: ServerConfig, metrics_command: Sequence[str]) -> dict[str, str]:
    """What ts-mps sets where the user did not: metrics on the metrics port, and GPU metrics that work.

    Args:
        config: The user's configuration.
        metrics_command: What collects the system's metrics: the words behind the interpreter, without blanks, at which
            the frontend splits it.
    """
    ours = {
        "metrics_mode": "prometheus",
        "metrics_config": str(DATA / "metrics.yaml"),
        "system_metrics_cmd": " ".join(metrics_command),
    }
    return {key: value for key, value in ours.items() if key not in config.resolved}


def effective(config: ServerConfig, overrides: Mapping[str, str]) -> dict[str, str]:
    """Every key of the user's file as it stands there, with ``overrides`` on top."""
    return {**config.values, **overrides}


def write_effective(path: Path, config: ServerConfig, overrides: Mapping[str, str]) -> None:
    """Write the file that TorchServe reads instead of the user's.

    Raises:
        OSError: It cannot be written.
    """
    note = f"Written by ts-mps at every start; changes are lost. {config.source}\nSet by ts-mps: {', '.join(overrides)}"
    properties.write(path, effective(config, overrides), note)


def check(config: ServerConfig) -> tuple[PreflightError, ...]:
    """Every value that TorchServe would stumble over while starting, not just the first."""
    found: list[PreflightError] = []
    for name in _READ_AT_START:
        try:
            getattr(config, name)
        except PreflightError as error:
            found.append(error)
    return tuple(found)


def _choose(args: StartArguments, environ: Mapping[str, str]) -> tuple[str, Path | None, bool]:
    """A sentence about the choice, the file, and whether it is a snapshot."""
    named = named_file(args, environ)
    if named:
        place = "--ts-config" if "TS_CONFIG_FILE" not in environ else "TS_CONFIG_FILE"
        return f"The configuration is {named}, named by {place}.", Path(named).absolute(), False
    if "TS_CONFIG_FILE" in environ:
        return "TS_CONFIG_FILE is set but empty, so TorchServe reads no configuration file.", None, False
    snapshot = None if args.no_config_snapshots else last_snapshot(environ)
    if snapshot:
        sentence = (
            f"The configuration is TorchServe's last snapshot {snapshot}, which beats ./config.properties "
            "(--ncs or --ts-config leave it out)."
        )
        return sentence, snapshot.absolute(), True
    default = Path("config.properties")
    if default.exists():
        return f"The configuration is {default.absolute()}, found in the working directory.", default.absolute(), False
    return "There is no configuration file.", None, False


def last_snapshot(environ: Mapping[str, str]) -> Path | None:
    """The newest snapshot in ``$LOG_LOCATION/config``, by the time in its name.

    Raises:
        PreflightError: One of several files there has no time in its name; TorchServe dies of it.
    """
    # Joined as text like the frontend does it: an empty LOG_LOCATION means /config.
    folder = Path(environ.get("LOG_LOCATION", "logs") + "/config")
    files = [path for path in folder.iterdir() if not path.is_dir()] if folder.is_dir() else []
    if len(files) > 1:
        for path in files:
            if not _SNAPSHOT_TIME.match(path.name):
                raise PreflightError(
                    f"{path} is no snapshot, and TorchServe cannot start while it lies among its snapshots.",
                    "Move it away, or start with --ncs.",
                )
    return max(files, key=lambda path: path.name[:17], default=None)


def _substitute(text: str, place: str, environ: Mapping[str, str]) -> str:
    """Replace every ``$$VARIABLE$$``."""

    def value(match: re.Match[str]) -> str:
        variable = match[1]
        if variable not in environ:
            raise PreflightError(f"{place} needs the environment variable {variable}, which is not set.")
        if set(environ[variable]) & {"$", "\\"}:
            raise PreflightError(
                f"{place} takes the environment variable {variable}, in which TorchServe misreads '$' and '\\'.",
                "Write the value into the file itself.",
            )
        return environ[variable]

    return _VARIABLE.sub(value, text)


def _flags(args: StartArguments) -> dict[str, tuple[str, str]]:
    """Key to the value and name of the flag that sets it."""
    given = {
        "model_store": (args.model_store, "--model-store"),
        "workflow_store": (args.workflow_store, "--workflow-store"),
        "cpp_log_config": (args.cpp_log_config, "--cpp-log-config"),
        "load_models": (",".join(args.models), "--models"),
        "enable_model_api": ("true" if args.enable_model_api else "", "--enable-model-api"),
        "disable_token_authorization": ("true" if args.disable_token_auth else "", "--disable-token-auth"),
    }
    return {key: (value, flag) for key, (value, flag) in given.items() if value}

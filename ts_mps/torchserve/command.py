"""The java command and environment that TorchServe's launcher would use, with what ts-mps must have different.

Follows ``start`` in ``ts/model_server.py`` of TorchServe 0.12.0 step by step; ``tests/unit/test_parity.py`` runs the
two against each other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import ts.model_server

from ts_mps.errors import TsMpsError
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.config import DATA, launcher_properties

#: Our quiet log configuration.
LOG_CONFIG = DATA / "log4j2.xml"

_LOG_PROPERTIES = ("-Dlog4j.configurationFile=", "-Dlog4j2.configurationFile=")
#: What Log4j 2 finds by itself on the class path, whose first entry is the working directory.
_LOG_FILES = tuple(f"{stem}.{suffix}" for stem in ("log4j2-test", "log4j2") for suffix in ("properties", "xml"))


def java_command(
    args: StartArguments, *, environ: Mapping[str, str], java: str, python: str, config: Path, log_config: Path
) -> list[str]:
    """The command that starts TorchServe's frontend.

    Args:
        args: What the user asked for.
        environ: Where TEMP and TS_CONFIG_FILE are looked up.
        java: The Java to run.
        python: What the frontend starts as Python.
        config: The effective config.properties.
        log_config: Our log configuration; used only where the user has none.

    Returns:
        The program and its arguments; relative paths count from the working directory, as the user wrote them.

    Raises:
        TsMpsError: A file or folder that a flag, TEMP or TS_CONFIG_FILE names is missing, or there is no model
            store; exit code 1 as TorchServe's.
    """
    launcher = launcher_properties(args, environ)
    vmargs = launcher.get("vmargs", "").split()
    home = os.path.dirname(os.path.dirname(os.path.realpath(ts.model_server.__file__)))
    command = [java, f"-Dmodel_server_home={home}"]

    if args.log_config:
        path = os.path.realpath(_existing_file("--log-config", args.log_config))
        command.append(f"-Dlog4j.configurationFile=file://{path}")
        vmargs = [word for word in vmargs if not word.startswith("-Dlog4j.configurationFile=")]
    elif not has_log_config(vmargs, environ):
        command.append(f"-Dlog4j.configurationFile={log_config.absolute().as_uri()}")
    if environ.get("TEMP"):
        command.append(f"-Djava.io.tmpdir={_existing_folder('the environment variable TEMP', environ['TEMP'])}")
    command += vmargs

    class_path = [".", os.path.join(home, "ts", "frontend", "*")]
    class_path += [
        plugins if "*" in plugins else f"{plugins}/*"
        for plugins in (launcher.get("plugins_path"), args.plugins_path)
        if plugins
    ]
    command += ["-cp", ":".join(class_path), ts.model_server.TS_NAMESPACE, "--python", python, "-f", str(config)]

    store = args.model_store or launcher.get("model_store")
    if not store:
        raise TsMpsError(
            "There is no model store.", "Name the folder of your archives with --model-store, or in --ts-config's file."
        )
    command += ["-s", _existing_folder("--model-store" if args.model_store else "model_store", store)]
    if args.workflow_store:
        command += ["-w", _existing_folder("--workflow-store", args.workflow_store)]
    if args.no_config_snapshots:
        command.append("-ncs")
    if args.disable_token_auth:
        command.append("--disable-token-auth")
    if args.enable_model_api:
        command.append("--enable-model-api")
    if args.models:
        command += ["-m", *args.models]
    if args.cpp_log_config:
        command += ["-clog", os.path.realpath(_existing_file("--cpp-log-config", args.cpp_log_config))]
    return command


def has_log_config(vmargs: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether the user has a log configuration other than by ``--log-config``: by JVM options or where Log4j looks."""
    options = [*vmargs]
    for variable in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS"):
        options += environ.get(variable, "").split()
    return (
        any(option.startswith(_LOG_PROPERTIES) for option in options)
        or "LOG4J_CONFIGURATION_FILE" in environ
        or any(Path(name).is_file() for name in _LOG_FILES)
    )


def server_environment(
    environ: Mapping[str, str], *, config: Path, bin_folder: Path, gpus: Sequence[int]
) -> dict[str, str]:
    """The environment for java, which hands it on to every worker.

    Args:
        environ: The user's environment.
        config: The effective config.properties.
        bin_folder: Where ``python3`` is found before any other, for archives of runtime python3.
        gpus: NVML indices of the GPUs in use. TorchServe dies of UUIDs, so these replace the user's words; none hides
            every GPU.
    """
    changed = {
        **environ,
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
        # NVML counts GPUs in this order and CUDA by default does not, so without it the indices could mean others.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PATH": f"{bin_folder}{os.pathsep}{environ.get('PATH', os.defpath)}",
    }
    if "TS_CONFIG_FILE" in environ:
        # It would beat the file that the command names.
        changed["TS_CONFIG_FILE"] = str(config)
    # TorchServe takes it unchecked, even beyond the GPUs that there are; the effective config has the number.
    changed.pop("TS_NUMBER_OF_GPU", None)
    return changed


def _existing_file(place: str, path: str) -> str:
    if not Path(path).is_file():
        raise TsMpsError(f"The file {path} that {place} names does not exist.")
    return path


def _existing_folder(place: str, path: str) -> str:
    if not Path(path).is_dir():
        raise TsMpsError(f"The folder {path} that {place} names does not exist.")
    return path

"""What the build scripts have in common: a model folder and a handler into an archive, by torch-model-archiver."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

_HANDLERS = Path(__file__).resolve().parents[1]

#: Writes a small or well-known model into an empty folder, with random weights of a fixed seed.
Preset = Callable[[Path], None]


def main(handler: str, presets: Mapping[str, Preset], arguments: Sequence[str] | None = None) -> Path:
    """Build an archive as the command line says.

    Args:
        handler: The handler's name; its file and its model-config.yaml lie in handlers/.
        presets: Models that can be made on the spot; the first one is the default.
        arguments: The command line; None for this process's.

    Returns:
        The archive: ``<store>/<name>.mar``, or the folder ``<store>/<name>`` for ``--format no-archive``.

    Raises:
        SystemExit: With a sentence, if it cannot be built.
    """
    parser = _parser(handler, presets)
    options = parser.parse_args(arguments)
    if options.model and options.keep_model:
        parser.error("--keep-model is where a preset's model goes; it does not go with --model")
    if "/" in options.name or options.name.startswith("."):
        parser.error(f"--name {options.name}: a name without slashes and leading dots is needed")
    for file in (options.handler, options.config):
        if not file.is_file():
            parser.error(f"{file}: there is no such file")
    target = options.store / (options.name if options.format == "no-archive" else f"{options.name}.mar")
    with tempfile.TemporaryDirectory(prefix="ts-mps-build-") as scratch:
        folder = options.model
        if folder is None:
            folder = options.keep_model or Path(scratch) / "model"
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                sys.exit(f"{folder} is not empty; name an empty or new folder for --keep-model.")
            presets[options.preset](folder)
        elif not folder.is_dir():
            sys.exit(f"{folder} is not a folder.")
        _check_target(target, folder)
        serialized = _serialized(folder, handler)
        config = Path(scratch) / "model-config.yaml"
        config.write_text(yaml.safe_dump(_config(options), sort_keys=False))
        made = _archive(options, folder, serialized, config, Path(scratch))
        options.store.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        shutil.move(made, target)
    print(f"{target}\nServe it: ts-mps start --model-store {options.store} --models {target.name}")
    return target


def _check_target(target: Path, folder: Path) -> None:
    """Nothing is replaced that is not an archive, and not what is being archived."""
    if target.is_dir() and not (target / "MAR-INF" / "MANIFEST.json").is_file():
        sys.exit(f"{target} exists and is no archive; remove it, or choose another --name or --store.")
    if target.exists() and (target.resolve() == folder.resolve() or target.resolve() in folder.resolve().parents):
        sys.exit(f"{target} holds the model that is to be archived; choose another --name or --store.")


def _serialized(folder: Path, handler: str) -> Path | None:
    """The file that goes into the manifest; None for a model folder of transformers."""
    transformers, weights = handler != "ranker", handler in ("ranker", "image_classifier")
    if transformers and (folder / "config.json").is_file():
        return None
    found = next((folder / name for name in _SERIALIZED if (folder / name).is_file()), None)
    if found is None or not weights:
        wanted = [*(["config.json"] if transformers else []), *(_SERIALIZED if weights else [])]
        sys.exit(f"{folder} has no {' or '.join(wanted)}, so there is no model in it that this handler can load.")
    return found


def _parser(handler: str, presets: Mapping[str, Preset]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=f"Build an archive with the handler {handler}.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", type=Path, metavar="FOLDER", help="the model's folder; its files are archived")
    source.add_argument(
        "--preset",
        choices=list(presets),
        default=next(iter(presets)),
        help="instead: a model made on the spot, with random weights (default: %(default)s)",
    )
    parser.add_argument("--keep-model", type=Path, metavar="FOLDER", help="write the preset's model folder here")
    parser.add_argument("--store", type=Path, default=_HANDLERS.parent / "model_store", metavar="FOLDER")
    parser.add_argument("--name", default=handler, help="the model's name (default: %(default)s)")
    parser.add_argument("--version", default="1.0")
    parser.add_argument("--handler", type=Path, default=_HANDLERS / f"{handler}.py", metavar="FILE")
    parser.add_argument("--config", type=Path, default=_HANDLERS / f"{handler}.yaml", metavar="FILE")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of model-config.yaml, e.g. batchSize=16 or batching.dtype=fp16; may be repeated",
    )
    parser.add_argument("--format", choices=("default", "no-archive"), default="default")
    return parser


def _config(options: argparse.Namespace) -> dict[str, Any]:
    try:
        config: dict[str, Any] = yaml.safe_load(options.config.read_text()) or {}
        for change in options.set:
            key, equals, value = change.partition("=")
            if not equals:
                sys.exit(f"--set needs KEY=VALUE, got {change!r}.")
            *sections, last = key.split(".")
            place = config
            for section in sections:
                place = place.setdefault(section, {})
                if not isinstance(place, dict):
                    sys.exit(f"--set {change}: {section} is no section of {options.config}.")
            place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        sys.exit(f"This is not YAML: {error}")
    return config


def _archive(options: argparse.Namespace, folder: Path, serialized: Path | None, config: Path, scratch: Path) -> Path:
    export, extra = scratch / "export", scratch / "extra"
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    command += ["--model-name", options.name, "--version", options.version, "--handler", str(options.handler)]
    command += ["--config-file", str(config), "--export-path", str(export), "--archive-format", options.format]
    for path in (export, extra, scratch / "tmp"):
        path.mkdir()
    for path in sorted(folder.iterdir()):
        if path == serialized:
            command += ["--serialized-file", str(path)]
        elif path.name == "model.py" and serialized is not None:
            command += ["--model-file", str(path)]
        elif not path.name.startswith("."):
            # Beside one another in one folder, which the archiver copies as it is. Files and folders that were named
            # one by one would be flattened over each other, and separated at the commas in their names.
            (extra / path.name).symlink_to(path.resolve(), target_is_directory=path.is_dir())
    if any(extra.iterdir()):
        command += ["--extra-files", str(extra)]
    # The archiver collects its files in <temporary folder>/<name> and first removes what has that name.
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(scratch / "tmp")}, capture_output=True, text=True, check=False
    )
    made = export / (options.name if options.format == "no-archive" else f"{options.name}.mar")
    if done.returncode or not made.exists():
        sys.exit(f"torch-model-archiver failed:\n{done.stderr.strip()}")
    return made


#: Names of a weights file that go into the manifest, for models without a transformers config.
_SERIALIZED = ("model.pt2", "model.pt", "model.safetensors")

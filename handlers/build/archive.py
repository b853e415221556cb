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
    options = _parser(handler, presets).parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ts-mps-build-") as scratch:
        folder = options.model
        if folder is None:
            folder = options.keep_model or Path(scratch) / "model"
            folder.mkdir(parents=True, exist_ok=True)
            presets[options.preset](folder)
        elif not folder.is_dir():
            sys.exit(f"{folder} is not a folder.")
        config = Path(scratch) / "model-config.yaml"
        config.write_text(yaml.safe_dump(_config(options), sort_keys=False))
        archive = _archive(options, folder, config, Path(scratch))
    print(f"{archive}\nServe it: ts-mps start --model-store {options.store} --models {archive.name}")
    return archive


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
    config: dict[str, Any] = yaml.safe_load(options.config.read_text()) or {}
    for change in options.set:
        key, equals, value = change.partition("=")
        if not equals:
            sys.exit(f"--set needs KEY=VALUE, got {change!r}.")
        *sections, last = key.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = yaml.safe_load(value)
    return config


def _archive(options: argparse.Namespace, folder: Path, config: Path, scratch: Path) -> Path:
    export = scratch / "export"
    export.mkdir()
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    command += ["--model-name", options.name, "--version", options.version, "--handler", str(options.handler)]
    command += ["--config-file", str(config), "--export-path", str(export), "--archive-format", options.format]
    extra = []
    serialized = [path for path in sorted(folder.iterdir()) if path.name in _SERIALIZED]
    for path in sorted(folder.iterdir()):
        if path in serialized[:1] and not (folder / "config.json").is_file():
            command += ["--serialized-file", str(path)]
        elif path.name == "model.py":
            command += ["--model-file", str(path)]
        else:
            extra.append(str(path))
    if extra:
        command += ["--extra-files", ",".join(extra)]
    # The archiver collects its files in <temporary folder>/<name> and first removes what has that name.
    (scratch / "tmp").mkdir()
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(scratch / "tmp")}, capture_output=True, text=True, check=False
    )
    made = export / (options.name if options.format == "no-archive" else f"{options.name}.mar")
    if done.returncode or not made.exists():
        sys.exit(f"torch-model-archiver failed:\n{done.stderr.strip()}")
    options.store.mkdir(parents=True, exist_ok=True)
    target: Path = options.store / made.name
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    shutil.move(made, target)
    return target


#: Names of a weights file that go into the manifest, for models without a transformers config.
_SERIALIZED = ("model.pt2", "model.pt", "model.safetensors")

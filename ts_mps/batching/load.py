"""The default way to load an archive's model."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ts_mps.batching.errors import ConfigError


def load_model(folder: Path, manifest: Mapping[str, Any]) -> torch.nn.Module:
    """Load what was archived with ``--serialized-file``, and ``--model-file`` where the weights need one.

    A model file must define one torch.nn.Module that can be made without arguments; the serialized file is then its
    state_dict (.safetensors, or torch.save's, read with ``weights_only``). Without a model file the serialized file is
    an exported program (.pt2) or TorchScript.

    Raises:
        ConfigError: The archive lacks a file, or the files do not fit each other.
    """
    model = manifest.get("model", {})
    serialized = model.get("serializedFile")
    if not serialized or not (folder / serialized).is_file():
        raise ConfigError("The archive has no --serialized-file to load a model from; or write the method load.")
    weights = folder / serialized
    if model.get("modelFile"):
        made = _model_class(folder / Path(model["modelFile"]).name)()
        try:
            made.load_state_dict(_state(weights))
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"{serialized} does not fit {model['modelFile']}: {error}") from error
        return made
    if weights.suffix == ".pt2":
        # Exported for one mode; train() and eval() of an exported program raise.
        program = _read(weights, torch.export.load).module()
        program.eval = lambda: program
        return program
    loaded: torch.nn.Module = _read(weights, lambda path: torch.jit.load(str(path), map_location="cpu"))
    return loaded


def _state(weights: Path) -> Mapping[str, Any]:
    if weights.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(_read(weights, load_file))
    state: Mapping[str, Any] = _read(weights, lambda path: torch.load(path, map_location="cpu", weights_only=True))
    return state


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except Exception as error:  # each format's reader has errors of its own
        raise ConfigError(f"{path.name} cannot be read: {error}") from error


def _model_class(path: Path) -> type[torch.nn.Module]:
    spec = importlib.util.spec_from_file_location(f"ts_mps_model_file.{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"The archive's model file {path.name} is no Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the names of their annotations
    spec.loader.exec_module(module)
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, torch.nn.Module) and member.__module__ == module.__name__ and not _needs_arguments(member)
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{path.name} must define one torch.nn.Module that can be made without arguments; it has {len(found)}."
        )
    return found[0]


def _needs_arguments(module: type[torch.nn.Module]) -> bool:
    return any(
        parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in inspect.signature(module).parameters.values()
    )

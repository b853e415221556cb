"""The default way to load an archive's model, and torch.compile for one."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ts_mps.batching.errors import ConfigError

_Run = TypeVar("_Run", bound=Callable[..., Any])


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


def compiled(run: _Run, option: bool | str, shapes: int) -> _Run:
    """Put a model through torch.compile, once for each of its shapes.

    Args:
        run: What calls it.
        option: ``batching.compile``: true, or the name of a mode.
        shapes: How many shapes it will be called with.
    """
    # One compilation for each shape; the default limit of 8 would leave the rest eager without a word.
    limits = torch._dynamo.config
    name = "recompile_limit" if hasattr(limits, "recompile_limit") else "cache_size_limit"  # before torch 2.7
    setattr(limits, name, max(getattr(limits, name), 4 * shapes))
    made: _Run = torch.compile(run, mode=None if isinstance(option, bool) else option, dynamic=False)
    return made


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

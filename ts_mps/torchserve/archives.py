"""Read a model archive as TorchServe will: ``.mar``, ``.tar.gz`` or ``.model``, or a folder.

TorchServe finds most faults of an archive in a worker, after minutes of retries. What can be seen without running the
handler is seen here.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ts_mps.errors import PreflightError

_MANIFEST = "MAR-INF/MANIFEST.json"
_REPACK = "Pack it again with torch-model-archiver."
_CORRECT = "Correct it and pack the archive again."
#: Manifest.RuntimeType of TorchServe 0.12.0.
_RUNTIMES = ("python", "python3", "LSP")
#: What serialized weights are called: torch's own, safetensors, ONNX, TensorRT and checkpoints of other frameworks.
_WEIGHT_FILES = frozenset(
    (".pt", ".pth", ".pt2", ".bin", ".safetensors", ".onnx", ".ckpt", ".engine", ".plan", ".gguf", ".h5", ".npz")
)


@dataclass(frozen=True)
class Archive:
    """What an archive says of itself.

    Args:
        path: The file or folder.
        name: modelName of the manifest; empty if there is none.
        version: modelVersion of the manifest, "1.0" without one, as in TorchServe.
        handler: Handler of the manifest, such as "handler.py:handle"; empty if there is none.
        runtime: "python", "python3" or "LSP" (C++).
        config: The archive's model-config.yaml; None if it has none.
        weights: Bytes of the files that hold weights, unpacked.
    """

    path: Path
    name: str
    version: str
    handler: str
    runtime: str
    config: Mapping[str, Any] | None = None
    weights: int = 0

    def integer(self, key: str) -> int | None:
        """An integer of model-config.yaml; None if it is missing or, as in TorchServe, no integer."""
        value = (self.config or {}).get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class _Content:
    """The files in an archive, by their path in it, with their unpacked sizes in bytes."""

    sizes: Mapping[str, int]
    read: Callable[[str], bytes]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.sizes)

    @property
    def weights(self) -> int:
        return sum(size for name, size in self.sizes.items() if PurePosixPath(name).suffix.lower() in _WEIGHT_FILES)


def read_archive(path: Path, default_handler: str = "") -> Archive:
    """Read the manifest and model-config.yaml and look for the handler.

    Args:
        path: A ``.mar`` (zip), another file (gzipped tar, as TorchServe takes it), or a folder.
        default_handler: ``default_service_handler`` of config.properties, used where the manifest names none.

    Raises:
        PreflightError: The archive is missing, truncated or not of its kind; it has no manifest; the manifest or the
            yaml cannot be used; or the handler is neither in the archive nor one that Python finds.
    """
    try:
        content = _open(path)
        archive = _describe(path, content)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, NotImplementedError) as error:
        raise PreflightError(f"The archive {path} is damaged or truncated ({error}).", _REPACK) from error
    except OSError as error:
        raise PreflightError(f"The archive {path} cannot be read: {error.strerror or error}.") from error
    _check_handler(archive, archive.handler or default_handler, content.names)
    return archive


def _open(path: Path) -> _Content:
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".mar":
        return _open_zip(path)
    return _open_tar(path)


def _open_folder(path: Path) -> _Content:
    inside = list(path.iterdir())
    # A folder that holds one folder only is that folder (ModelArchive.downloadModel).
    root = inside[0] if len(inside) == 1 and inside[0].is_dir() else path
    sizes = {str(file.relative_to(root)): file.stat().st_size for file in root.rglob("*") if file.is_file()}
    return _Content(sizes, lambda name: (root / name).read_bytes())


def _open_zip(path: Path) -> _Content:
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        for name in sizes:
            if ".." in PurePosixPath(name).parts:
                raise PreflightError(f"The archive {path} has an entry outside itself: {name}.", _REPACK)

    def read(name: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)

    return _Content(sizes, read)


def _open_tar(path: Path) -> _Content:
    """List a tar without its outer folder, which TorchServe drops too."""
    with tarfile.open(path, "r:gz") as archive:  # reads to the end, so a truncated file is found
        files = [member for member in archive if member.isfile()]
    members = {member.name.partition("/")[2] or member.name: member for member in files}

    def read(name: str) -> bytes:
        with tarfile.open(path, "r:gz") as archive:
            stream = archive.extractfile(members[name].name)
            return stream.read() if stream else b""

    return _Content({name: member.size for name, member in members.items()}, read)


def _describe(path: Path, content: _Content) -> Archive:
    if _MANIFEST not in content.names:
        raise PreflightError(f"{path} is no model archive: it has no {_MANIFEST}.", _REPACK)
    try:
        # Numbers stay as they are written, because TorchServe takes a version 1.10 for "1.10".
        manifest = json.loads(content.read(_MANIFEST), parse_int=str, parse_float=str)
        model = manifest.get("model", {})
        texts = {key: model.get(key) or "" for key in ("modelName", "modelVersion", "handler", "configFile")}
        runtime = manifest.get("runtime", "python")
    except (ValueError, AttributeError) as error:
        raise PreflightError(f"The manifest in {path} is not the JSON of a model archive.", _REPACK) from error
    if runtime not in _RUNTIMES:
        raise PreflightError(f"The archive {path} asks for runtime {runtime!r}, which TorchServe has not.", _REPACK)
    config = _read_config(path, content, texts["configFile"]) if texts["configFile"] else None
    return Archive(
        path,
        texts["modelName"],
        texts["modelVersion"] or "1.0",
        texts["handler"],
        runtime,
        config,
        weights=content.weights,
    )


def _read_config(path: Path, content: _Content, name: str) -> Mapping[str, Any]:
    where = f"{name} in {path}"
    if name not in content.names:
        raise PreflightError(f"The archive {path} names {name} as its configuration and does not hold it.", _REPACK)
    try:
        config = yaml.safe_load(content.read(name))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise PreflightError(
            f"{where} is not YAML{line}.", "Correct it and pack the archive again.", str(error)
        ) from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise PreflightError(f"{where} is not a mapping of names to values.", _CORRECT)
    return config


def _check_handler(archive: Archive, handler: str, names: frozenset[str]) -> None:
    """Look for the handler as TorchServe's model_loader will: in the archive, on Python's path, among its own."""
    if archive.runtime == "LSP":
        return
    if not handler:
        raise PreflightError(
            f"The archive {archive.path} names no handler.",
            "Pack it again with --handler, or set default_service_handler.",
        )
    module = handler.partition(":")[0].removesuffix(".py").rpartition("/")[2]
    top = module.partition(".")[0]
    if f"{top}.py" in names or any(name.startswith(f"{top}/") for name in names):
        return
    if _is_stock_handler(module) or importlib.util.find_spec(top) is not None:
        return
    raise PreflightError(
        f"The archive {archive.path} names the handler {handler!r}, which is neither in it nor one of TorchServe's.",
        "Pack it again with --handler PATH/TO/HANDLER.py.",
    )


def _is_stock_handler(module: str) -> bool:
    torchserve = importlib.util.find_spec("ts")
    folders = (torchserve.submodule_search_locations or []) if torchserve else []
    return any((Path(folder) / "torch_handler" / f"{module}.py").is_file() for folder in folders)

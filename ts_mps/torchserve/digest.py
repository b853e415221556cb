"""Name the content of a model archive by a digest, however it is packed."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, TypeAlias

import yaml

from ts_mps.torchserve.unpack import DAMAGES, damaged, inner_name, model_folder

_PIECE = 1 << 20
_MANIFEST = "MAR-INF/MANIFEST.json"
#: What differs each time an archive is packed (model_packaging_utils of torch-model-archiver 0.12.0).
_PACKING = ("createdOn",)
#: Keys of a model-config.yaml that only the frontend reads (ModelConfig.java of TorchServe 0.12.0).
_FRONTEND = (
    "minWorkers",
    "maxWorkers",
    "batchSize",
    "maxBatchDelay",
    "responseTimeout",
    "startupTimeout",
    "jobQueueSize",
    "maxRetryTimeoutInSec",
    "deviceIds",
)

#: Name, size and CRC-32 of a file.
_Sum: TypeAlias = tuple[str, int, int]


def content_digest(path: Path) -> str:
    """What tells one model from another, as hexadecimal digits: SHA-256 of its files' names, sizes and CRC-32.

    It is the same for a ``.mar``, a ``.tar.gz`` and a folder of the same files, however often they were packed, and
    whatever the model's configuration asks of TorchServe's frontend (workers, batch size, delays): that changes nothing
    about what a worker does with a batch. A ``.mar`` need not be read as a whole, as its directory has the sums.

    Raises:
        OSError: Something in it cannot be read.
        PreflightError: It is damaged.
    """
    try:
        if path.is_dir():
            sums = _of_folder(model_folder(path))
        elif zipfile.is_zipfile(path):
            sums = _of_zip(path)
        else:
            sums = _of_tar(path)
    except (*DAMAGES, json.JSONDecodeError, yaml.YAMLError) as error:
        raise damaged(path, error) from error
    lines = (f"{name}\0{size}\0{sum_}\n" for name, size, sum_ in sorted(sums))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _of_folder(root: Path) -> list[_Sum]:
    found = []
    for file in root.rglob("*"):
        # What Python writes beside a handler that was imported in place is no part of the model.
        if file.is_file() and "__pycache__" not in file.parts:
            name = file.relative_to(root).as_posix()
            with file.open("rb") as stream:
                found.append(_sum(name, stream))
    return found


def _of_zip(path: Path) -> list[_Sum]:
    found = []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            if _is_told(entry.filename):
                with archive.open(entry) as stream:
                    found.append(_sum(entry.filename, stream))
            else:
                found.append((entry.filename, entry.file_size, entry.CRC))
    return found


def _of_tar(path: Path) -> list[_Sum]:
    found = []
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None:
                found.append(_sum(inner_name(member.name), stream))
    return found


def _sum(name: str, stream: IO[bytes]) -> _Sum:
    if _is_told(name):
        told = _told(name, stream.read())
        return name, len(told), zlib.crc32(told)
    size = value = 0
    while piece := stream.read(_PIECE):
        size, value = size + len(piece), zlib.crc32(piece, value)
    return name, size, value


def _is_told(name: str) -> bool:
    return name == _MANIFEST or ("/" not in name and name.endswith((".yaml", ".yml")))


def _told(name: str, data: bytes) -> bytes:
    """A manifest without its date, a configuration without what it asks of the frontend."""
    content = json.loads(data) if name == _MANIFEST else yaml.safe_load(data)
    if isinstance(content, dict):
        unsaid = _PACKING if name == _MANIFEST else _FRONTEND
        content = {str(key): value for key, value in content.items() if key not in unsaid}
    return json.dumps(content, sort_keys=True, default=str).encode()

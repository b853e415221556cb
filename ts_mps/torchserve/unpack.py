"""Lay a model archive out on disk as TorchServe does before it starts a worker, and name its content by a digest."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from ts_mps.errors import PreflightError

_PIECE = 1 << 20


def unpack(path: Path, into: Path) -> Path:
    """The folder with the archive's files, ready for a worker.

    Args:
        path: A ``.mar`` (zip), another file (gzipped tar), or a folder, which is used where it is.
        into: An empty folder for what has to be unpacked.

    Raises:
        PreflightError: The archive is damaged, has an entry outside itself, or the disk is full.
    """
    if path.is_dir():
        return model_folder(path).absolute()
    try:
        if path.suffix == ".mar":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(into)
        else:
            _untar(path, into)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise PreflightError(f"The archive {path} is damaged ({error}).", "Pack it again.") from error
    except OSError as error:
        raise PreflightError(
            f"The archive {path} cannot be unpacked into {into}: {error.strerror or error}.",
            "Set TMPDIR to a folder with room for it.",
        ) from error
    return into


def model_folder(path: Path) -> Path:
    """Where the files of an archive that is a folder are.

    One that holds a single folder is that folder (ModelArchive.downloadModel of TorchServe 0.12.0).
    """
    inside = list(path.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else path


def content_digest(path: Path) -> str:
    """SHA-256 of an archive, as hexadecimal digits: of the file, or of a folder's names and files in order of name.

    Raises:
        OSError: Something in it cannot be read.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        root = model_folder(path)
        for file in sorted(root.rglob("*")):
            # What Python writes beside a handler that was imported in place is no part of the model.
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\0".encode())
                _feed(digest, file)
    else:
        _feed(digest, path)
    return digest.hexdigest()


def _untar(path: Path, into: Path) -> None:
    """Unpack without the outer folder, which TorchServe drops (ZipUtils.decompressTarGzipFile)."""
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            inner = member.name.partition("/")[2] or member.name
            target = into / inner
            if not target.resolve().is_relative_to(into.resolve()):
                raise PreflightError(f"The archive {path} has an entry outside itself: {member.name}.")
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(stream, file, _PIECE)


def _feed(digest: hashlib._Hash, file: Path) -> None:
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)

"""Lay a model archive out on disk as TorchServe does before it starts a worker."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from ts_mps.errors import PreflightError

_PIECE = 1 << 20
#: What reading a damaged archive raises.
DAMAGES = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile)


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
    except DAMAGES as error:
        raise damaged(path, error) from error
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


def _untar(path: Path, into: Path) -> None:
    """Unpack without the outer folder, which TorchServe drops (ZipUtils.decompressTarGzipFile)."""
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            target = into / inner_name(member.name)
            if not target.resolve().is_relative_to(into.resolve()):
                raise PreflightError(f"The archive {path} has an entry outside itself: {member.name}.")
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(stream, file, _PIECE)


def inner_name(name: str) -> str:
    """A tar's entry without the outer folder."""
    return name.partition("/")[2] or name


def damaged(path: Path, error: Exception) -> PreflightError:
    """What to raise for an archive that cannot be read."""
    return PreflightError(f"The archive {path} is damaged ({error}).", "Pack it again.")

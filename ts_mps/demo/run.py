"""The demo's steps before and after the server: make the archive, load the server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_packaging import package_model
from model_archiver.model_packaging_utils import ModelExportUtils

from ts_mps.demo.client import DemoLoad, load
from ts_mps.demo.train import Digits, Progress, load_digits, train
from ts_mps.errors import TsMpsError

__all__ = ["MODEL", "DemoLoad", "Digits", "Progress", "archive", "load", "load_digits", "prepare"]

#: Name of the demo's model and of its archive.
MODEL = "digits"
_DATA = Path(__file__).parents[1] / "data"
_BATCH_SIZE = 8
#: How long TorchServe waits for a batch to fill, in milliseconds.
_MAX_BATCH_DELAY = 2


def prepare(model_store: Path, workers: int, progress: Progress) -> Path:
    """Train the model and put its archive into the model store.

    Args:
        model_store: The folder; made if it is missing.
        workers: minWorkers and maxWorkers of the archive.
        progress: Called while it trains.

    Returns:
        ``<model_store>/digits.mar``; one that was there is replaced.

    Raises:
        TsMpsError: scikit-learn or Pillow is not installed, or the model store cannot be written.
    """
    digits = load_digits()
    with tempfile.TemporaryDirectory(prefix="ts-mps-demo-") as folder:
        weights = Path(folder) / "digits.pt"
        train(digits, weights, progress)
        return archive(weights, model_store, workers)


def archive(weights: Path, model_store: Path, workers: int) -> Path:
    """Pack weights, model and handler with torch-model-archiver.

    Args:
        weights: The state_dict of the model.
        model_store: The folder; made if it is missing.
        workers: minWorkers and maxWorkers of the archive.

    Raises:
        TsMpsError: The model store cannot be written.
    """
    frontend = {"minWorkers": workers, "maxWorkers": workers}
    batching = {"batchSize": _BATCH_SIZE, "maxBatchDelay": _MAX_BATCH_DELAY}
    target = model_store / f"{MODEL}.mar"
    try:
        model_store.mkdir(parents=True, exist_ok=True)
        with _staging() as folder:
            config = folder / "model-config.yaml"
            config.write_text(yaml.safe_dump({**frontend, **batching}, sort_keys=False))
            export = Path(tempfile.mkdtemp(dir=model_store, prefix=f".{MODEL}-"))
            try:
                recipe = ModelArchiverConfig(
                    model_name=MODEL,
                    handler=str(_DATA / "demo_handler.py"),
                    version="1.0",
                    serialized_file=str(weights),
                    model_file=str(_DATA / "demo_model.py"),
                    export_path=str(export),
                    config_file=str(config),
                )
                package_model(recipe, ModelExportUtils.generate_manifest_json(recipe))
                (export / target.name).replace(target)
            finally:
                (export / target.name).unlink(missing_ok=True)
                export.rmdir()
    except OSError as error:
        raise TsMpsError(
            f"The archive {target} cannot be written: {error.strerror or error}.", "Choose another --model-store."
        ) from error
    return target


@contextmanager
def _staging() -> Iterator[Path]:
    """A temporary folder that is also the archiver's.

    torch-model-archiver collects its files in <temporary folder>/<model name> and first removes whatever has that
    name, so in /tmp it would delete a folder "digits" of the user's.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="ts-mps-archive-") as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before

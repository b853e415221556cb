"""The archive of one arm: a folder that shares the weights' bytes with the original and has a configuration of its own.

model-config.yaml inside an archive beats config.properties and flags, so an arm's batch size and number of workers have
to stand there. A copy of gigabytes of weights per run would cost more than the run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ts_mps.bench import noop
from ts_mps.bench.records import Arm
from ts_mps.torchserve.unpack import model_folder

CONFIG = "model-config.yaml"
#: Milliseconds that TorchServe waits for a batch to fill where neither the archive nor the command line says.
BATCH_DELAY = 5
#: Seconds for a worker to load where the archive does not say; TorchServe's own 120 is short for large models.
_STARTUP = 500
_MANIFEST = Path("MAR-INF", "MANIFEST.json")


def arm_archive(source: Path, into: Path, name: str, arm: Arm) -> None:
    """Make the archive of an arm; TorchServe takes the folder as it is.

    Args:
        source: The model's archive as a folder; not used for a no-op arm.
        into: A folder that does not exist yet.
        name: modelName of the manifest.
        arm: What stands in the configuration.

    Raises:
        OSError: It cannot be written.
        ValueError: The archive's manifest or configuration cannot be read.
    """
    into.mkdir(parents=True)
    if arm.noop:
        (into / "noop.py").write_text(Path(noop.__file__).read_text())
        manifest: dict[str, Any] = {"runtime": "python", "model": {"handler": "noop.py", "modelVersion": "1.0"}}
        config: dict[str, Any] = {}
    else:
        root = model_folder(source)
        manifest = json.loads((root / _MANIFEST).read_text())
        named = manifest["model"].get("configFile")
        config = yaml.safe_load((root / named).read_text()) if named else {}
        _share(root, into, but={str(_MANIFEST), named or CONFIG, CONFIG})
    manifest["model"].update(modelName=name, configFile=CONFIG)
    (into / _MANIFEST).parent.mkdir(exist_ok=True)
    (into / _MANIFEST).write_text(json.dumps(manifest))
    (into / CONFIG).write_text(yaml.safe_dump({**config, **arm_config(config, arm)}))


def arm_config(config: Mapping[str, Any], arm: Arm) -> dict[str, Any]:
    """The keys of model-config.yaml that an arm sets.

    Args:
        config: What the archive says.
        arm: Its option "max_batch_delay" (milliseconds) beats the archive's.
    """
    delay = arm.options.get("max_batch_delay", config.get("maxBatchDelay", BATCH_DELAY))
    changed: dict[str, Any] = {
        "minWorkers": arm.workers,
        # TorchServe rejects minWorkers without maxWorkers.
        "maxWorkers": arm.workers,
        "batchSize": arm.batch_size,
        "maxBatchDelay": int(delay),
        "startupTimeout": config.get("startupTimeout", _STARTUP),
        "responseTimeout": config.get("responseTimeout", 120),
    }
    if arm.device == "cpu":
        changed["deviceType"] = "cpu"
    if "deviceIds" in config:
        changed["deviceIds"] = [0]  # a study is about one GPU, the only one that the server sees
    return changed


def _share(root: Path, into: Path, but: set[str]) -> None:
    for file in sorted(root.rglob("*")):
        path = file.relative_to(root)
        if not file.is_file() or str(path) in but or "__pycache__" in path.parts:
            continue
        target = into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The file that a link leads to: model stores often hold links into a cache.
            os.link(file.resolve(), target)
        except OSError:  # another file system, or one without hard links
            target.symlink_to(file.resolve())

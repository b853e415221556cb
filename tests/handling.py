"""The handlers of handlers/ without a server: built as their scripts build them, called as TorchServe calls them."""

from __future__ import annotations

import importlib.util
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import yaml

HANDLERS = Path(__file__).parents[1] / "handlers"


class Context:
    """TorchServe's context, as far as a handler uses it."""

    def __init__(self, folder: Path, config: dict[str, Any], gpu: int | None, manifest: dict[str, Any]) -> None:
        self.model_name = "model"
        self.manifest = {"model": {"modelVersion": "1.0", **manifest}}
        self.model_yaml_config = config
        self.system_properties = {"model_dir": str(folder), "gpu_id": gpu, "batch_size": 1}
        self.headers: list[dict[str, Any]] = []
        self.statuses: dict[int, int] = {}
        self.types: dict[int, str] = {}

    def get_all_request_header(self, index: int) -> dict[str, Any]:
        return self.headers[index]

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.statuses[idx] = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.types[idx] = value


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: bytes

    @property
    def json(self) -> Any:
        import orjson

        return orjson.loads(self.body)


class Served:
    """An initialised handler."""

    def __init__(self, name: str, folder: Path, *, gpu: int | None = None, **config: Any) -> None:
        loaded = yaml.safe_load((HANDLERS / f"{name}.yaml").read_text())
        for key, value in config.items():
            section, _, rest = key.partition("__")
            (loaded[section] if rest else loaded)[rest or section] = value
        weights = next((path.name for path in sorted(folder.glob("model.*")) if path.suffix != ".py"), None)
        manifest = {"serializedFile": weights}
        if (folder / "model.py").exists():
            manifest["modelFile"] = "model.py"
        self.context = Context(folder, loaded, gpu, manifest)
        module = module_of(HANDLERS / f"{name}.py")
        made = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
        assert len(made) == 1, "TorchServe wants one class in a handler's file"
        self.handler = made[0]()
        self.handler.initialize(self.context)

    def ask(self, *requests: tuple[Any, str], accept: str = "") -> list[Answer]:
        """One batch of (body, content type) pairs."""
        self.context.headers = [{"body": {"content-type": kind}, "Accept": accept} for _, kind in requests]
        self.context.statuses, self.context.types = {}, {}
        bodies = self.handler.handle([{"body": body} for body, _ in requests], self.context)
        assert len(bodies) == len(requests)
        return [
            Answer(self.context.statuses.get(index, 200), self.context.types[index], body)
            for index, body in enumerate(bodies)
        ]


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tested_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as after an import; pydantic looks annotations up there
    spec.loader.exec_module(module)
    return module


def build_module(name: str) -> ModuleType:
    """A build script as a module."""
    build = str(HANDLERS / "build")
    if build not in sys.path:
        sys.path.append(build)
    return module_of(HANDLERS / "build" / f"{name}.py")


def npy(array: Any) -> tuple[bytes, str]:
    """A body and its content type."""
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue(), "application/x-npy"

"""Loading an archive's model, and each way in which its files do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ts_mps.batching import ConfigError
from ts_mps.batching.load import load_model

MODEL = """
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import Linear


@dataclass
class Sizes:
    wide: int = 3


class Layer(torch.nn.Module):
    def __init__(self, sizes):
        super().__init__()


class Net(torch.nn.Module):
    def __init__(self, sizes: Sizes | None = None, *args, **more):
        super().__init__()
        self.linear = Linear((sizes or Sizes()).wide, 2)

    def forward(self, x):
        return self.linear(x)
"""


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


@pytest.fixture
def net() -> torch.nn.Module:
    torch.manual_seed(1)
    return Net().eval()


def same(loaded: torch.nn.Module, net: torch.nn.Module) -> bool:
    x = torch.ones(4, 3)
    return bool(torch.equal(loaded(x), net(x)))


def manifest(serialized: str | None = None, model: str | None = None) -> dict:
    return {"model": {"serializedFile": serialized, "modelFile": model, "modelName": "m"}}


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors"])
def test_a_model_file_and_its_weights(name: str, net: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    if name.endswith(".safetensors"):
        save_file(net.state_dict(), tmp_path / name)
    else:
        torch.save(net.state_dict(), tmp_path / name)
    assert same(load_model(tmp_path, manifest(name, "net.py")), net)
    assert same(load_model(tmp_path, manifest(name, "somewhere/else/net.py")), net)  # the archiver's flat folder


def test_torchscript(net: torch.nn.Module, tmp_path: Path) -> None:
    torch.jit.script(net).save(str(tmp_path / "w.pt"))
    loaded = load_model(tmp_path, manifest("w.pt"))
    assert same(loaded.to("cpu", torch.float32).eval(), net)


def test_an_exported_program(net: torch.nn.Module, tmp_path: Path) -> None:
    rows = torch.export.Dim("rows", min=1, max=64)
    torch.export.save(torch.export.export(net, (torch.ones(4, 3),), dynamic_shapes=({0: rows},)), tmp_path / "w.pt2")
    loaded = load_model(tmp_path, manifest("w.pt2"))
    loaded = loaded.to("cpu", torch.float32)
    loaded.eval()
    assert same(loaded, net)


@pytest.mark.parametrize("given", [{}, {"model": {}}, manifest(None, "net.py"), manifest("none.pt"), manifest("")])
def test_no_serialized_file(given: dict, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    with pytest.raises(ConfigError, match="no --serialized-file"):
        load_model(tmp_path, given)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.pt2"])
@pytest.mark.parametrize("model", [None, "net.py"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04" + b"\0" * 100])
def test_weights_that_cannot_be_read(name: str, model: str | None, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        load_model(tmp_path, manifest(name, model))


def test_weights_that_would_run_code(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    torch.save(Path(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"w\.pt cannot be read"):
        load_model(tmp_path, manifest("w.pt", "net.py"))


@pytest.mark.parametrize("state", [{"other": torch.ones(1)}, {"linear.weight": torch.ones(9, 9)}, torch.ones(1), [1]])
def test_weights_that_do_not_fit(state: object, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"w\.pt does not fit net\.py"):
        load_model(tmp_path, manifest("w.pt", "net.py"))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1", "it has 0"),
        ("from torch.nn import Linear, Identity", "it has 0"),
        ("import torch\nclass A(torch.nn.Module):\n  def __init__(self, n): pass", "it has 0"),
        ("import torch\nclass A(torch.nn.Module): pass\nclass B(torch.nn.Module): pass", "it has 2"),
    ],
)
def test_a_model_file_without_one_model(source: str, says: str, net: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(source)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=rf"net\.py must define one torch\.nn\.Module.*{says}"):
        load_model(tmp_path, manifest("w.pt", "net.py"))


@pytest.mark.parametrize("model", ["none.py", "net.txt"])
def test_a_model_file_that_is_none(model: str, net: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "net.txt").write_text(MODEL)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=rf"{model} is no Python module"):
        load_model(tmp_path, manifest("w.pt", model))

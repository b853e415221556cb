"""Imports of ts_mps.batching run one way: it can be used without the rest of ts_mps, and handlers only use it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = sorted((ROOT / "ts_mps" / "batching").glob("*.py"))
HANDLERS = sorted((ROOT / "handlers").glob("*.py"))


@pytest.mark.parametrize("path", [*LIBRARY, *HANDLERS], ids=lambda path: path.stem)
def test_nothing_else_of_ts_mps_is_imported(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written in full here"
            found.add(node.module or "")
    own = {name for name in found if name == "ts_mps" or name.startswith("ts_mps.")}
    assert {name for name in own if not name.startswith("ts_mps.batching")} == set()


def test_files_were_found() -> None:
    assert len(LIBRARY) > 10
    assert len(HANDLERS) == 4

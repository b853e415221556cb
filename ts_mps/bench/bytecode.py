"""Python's bytecode, kept for a study on a machine that keeps none.

Every run starts its workers afresh. Where the packages came without bytecode and Python may not write any
(PYTHONDONTWRITEBYTECODE, as many container images have it, or folders of somebody else), each of them compiles
thousands of modules again: torch and transformers took 10.5 s of CPU to import, and 4 s with bytecode.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Packages of workers that take longest to compile.
LARGE = ("torch", "transformers")
_NEVER = "PYTHONDONTWRITEBYTECODE"
_FOLDER = "PYTHONPYCACHEPREFIX"


def with_bytecode(environ: Mapping[str, str], folder: Path, packages: Sequence[str] = LARGE) -> dict[str, str]:
    """An environment in which Python keeps its bytecode in a folder, if it would keep none otherwise.

    With such a folder it no longer looks for what lies beside the modules, so nothing is changed where that is there.

    Args:
        environ: The environment.
        folder: The folder, which need not exist.
        packages: Whose bytecode is looked for; those that are not installed do not count.
    """
    kept = dict(environ)
    if _FOLDER in kept or not any(_lacks_for_good(name, kept) for name in packages):
        return kept
    kept.pop(_NEVER, None)
    return {**kept, _FOLDER: str(folder)}


def _lacks_for_good(package: str, environ: Mapping[str, str]) -> bool:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return False
    cached = Path(spec.origin).parent / "__pycache__"
    # By its name, which a prefix of this very process must not change.
    if any(cached.glob(f"{Path(spec.origin).stem}.*.pyc")):
        return False
    return bool(environ.get(_NEVER)) or not os.access(cached if cached.exists() else cached.parent, os.W_OK)

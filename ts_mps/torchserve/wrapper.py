"""The executable that TorchServe gets as ``--python``."""

from __future__ import annotations

import shlex

from ts_mps.paths import Home, InstancePaths


def wrapper_script(python: str, home: Home, instance: InstancePaths) -> str:
    """The text of ``worker-python``, which TorchServe starts in place of the interpreter.

    It must ``exec``: TorchServe kills a worker by the pid it started. Every other script (pip for
    install_py_dep_per_model, the metrics command) goes straight to the interpreter.
    """
    quote = shlex.quote
    return (
        "#!/bin/sh\n"
        f'case "$1" in */ts/model_service_worker.py) shift; exec {quote(python)} -m ts_mps.torchserve.worker '
        f'{quote(str(home.root))} {quote(instance.name)} -- "$@";; esac\n'
        f'exec {quote(python)} "$@"\n'
    )

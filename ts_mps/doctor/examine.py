"""All checks, in the order in which a start would meet them."""

from __future__ import annotations

from collections.abc import Mapping

from ts_mps.doctor.findings import Finding, Findings
from ts_mps.doctor.machine import check_foreign_mps, check_gpus, check_java, check_limits, check_python
from ts_mps.doctor.server import check_config, check_ports, check_security, check_start
from ts_mps.guardian.prepare import find_models
from ts_mps.paths import resolve_home
from ts_mps.torchserve.arguments import StartArguments


def examine(arguments: StartArguments, environ: Mapping[str, str]) -> tuple[Finding, ...]:
    """Look at everything that a start with these arguments would meet."""
    found = Findings()
    check_python(found)
    check_java(found, environ)
    home = found.attempt(
        "runtime folder",
        lambda: resolve_home(arguments.runtime_dir, environ, create=False),
        lambda home: f"{home.root}: short enough for MPS sockets, and nobody else's.",
    )
    config = check_config(found, arguments, environ)
    if home is not None:
        check_start(found, arguments, home, environ)
    if config is not None:
        gpus, _ = check_gpus(found, arguments.mps, config, environ)
        if config.resolved.get("model_store"):
            found.attempt(
                "models",
                lambda: find_models(arguments, config, gpus),
                lambda models: (
                    "; ".join(f"{m.name} {m.version}: {m.workers} worker(s)" for m in models) or "None asked for."
                ),
            )
        check_ports(found, config)
        check_security(found, arguments, config)
    check_foreign_mps(found, environ)
    check_limits(found, environ)
    return tuple(found.all)

"""``ts-mps demo``: the main job from training to stop, on real images, through the code of ``ts-mps start``."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ts_mps.cli.options import VerbParser
from ts_mps.cli.render import err_console, note, print_json, show, status_text
from ts_mps.cli.stop import stop_instance
from ts_mps.demo import run
from ts_mps.demo.client import DemoLoad
from ts_mps.errors import NotReadyError, TsMpsError
from ts_mps.guardian import background
from ts_mps.guardian.instance import RESULT_VERSION, Status
from ts_mps.guardian.prepare import Prepared, prepare
from ts_mps.guardian.state import load_state
from ts_mps.guardian.status import look
from ts_mps.guardian.stop import stop
from ts_mps.paths import resolve_home
from ts_mps.torchserve.arguments import StartArguments, parse
from ts_mps.torchserve.transport import call_url

#: What the model must reach on images that it was not trained on; a lower figure means that answers were mixed up.
LEAST_ACCURACY = 0.95
#: Requests under way at a time for each worker: two batches of eight, so that a full one always waits.
CLIENTS_PER_WORKER = 16
_ADDRESSES = ("inference_address", "management_address", "metrics_address")
_GRPC_PORTS = ("grpc_inference_port", "grpc_management_port")


def parser() -> argparse.ArgumentParser:
    """The verb's options."""
    options = VerbParser(
        prog="ts-mps demo",
        description="Train a small CNN on scikit-learn's handwritten digits, archive it, serve it as `ts-mps start` "
        "does on free ports, send the held-out images as PNG files over REST, and stop.",
    )
    options.add_argument("--workers", type=_positive, default=2, metavar="N", help="workers (default: 2)")
    options.add_argument("--mps", default="auto", metavar="auto|on|off", help="as in ts-mps start (default: auto)")
    options.add_argument(
        "--model-store", default="model_store", metavar="DIR", help="where the archive goes (default: ./model_store)"
    )
    options.add_argument("--name", default="demo", help="the instance's name (default: demo)")
    options.add_argument("--runtime-dir", metavar="DIR", help="as in ts-mps start [TS_MPS_HOME]")
    options.add_argument("--keep", action="store_true", help="leave the server running and print curl lines")
    options.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main(arguments: Sequence[str]) -> int:
    """Run the verb.

    Raises:
        TsMpsError: A step failed, or the accuracy is too low; nothing is left running.
    """
    options = parser().parse_args(arguments)
    store = Path(options.model_store)
    columns = (TextColumn("[dim]{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err_console(), transient=True) as bar:
        task = bar.add_task("training", total=1.0)

        def shown(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)

        archive = run.prepare(store, options.workers, shown)
        prepared = prepare(_start_arguments(options, archive), os.environ, Path.cwd())
        for sentence in prepared.notes:
            note(sentence)
        bar.update(task, total=None)
        code = background.start(prepared, lambda text: bar.update(task, description=text))
        if code != 0:
            return code
        try:
            bar.update(task, description="sending images", total=1.0, completed=0.0)
            status, load = _use(prepared, options.workers, shown)
        except BaseException:
            stop(prepared.home, prepared.paths, 0.0, lambda text: None)
            raise
    _render(options, status, load, _curl(prepared, store) if options.keep else ())
    if not options.keep:
        stop_instance(prepared.home, prepared.paths.name, None, as_json=False, quiet=options.json)
    _check(load)
    return 0


def _start_arguments(options: argparse.Namespace, archive: Path) -> StartArguments:
    """What a person would type after ``ts-mps start``."""
    instance = resolve_home(options.runtime_dir, os.environ).instance(options.name)
    instance.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = instance.root / "demo.properties"
    ports = iter(_free_ports(len(_ADDRESSES) + len(_GRPC_PORTS)))
    lines = [f"{key}=http://127.0.0.1:{next(ports)}" for key in _ADDRESSES]
    lines += [f"{key}={next(ports)}" for key in _GRPC_PORTS]
    config.write_text("\n".join(lines) + "\n")
    words = ["--model-store", str(archive.parent), "--models", f"{run.MODEL}={archive.name}", "--ncs"]
    words += ["--ts-config", str(config), "--name", options.name, "--mps", options.mps]
    words += ["--workers", str(options.workers)]
    if options.runtime_dir:
        words += ["--runtime-dir", options.runtime_dir]
    environ = {name: value for name, value in os.environ.items() if name == "TS_MPS_HOME"}
    return parse(words, environ)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _use(prepared: Prepared, workers: int, shown: Callable[[str, float], None]) -> tuple[Status, DemoLoad]:
    status, state = look(prepared.paths), load_state(prepared.paths)
    if status is None or state is None:
        raise NotReadyError(f"The state file {prepared.paths.state} is gone.")
    digits = run.load_digits()
    clients = CLIENTS_PER_WORKER * workers
    return status, run.load(state.endpoints.api(), digits.images, digits.labels, clients, progress=shown)


def _check(load: DemoLoad) -> None:
    if load.errors:
        raise TsMpsError(f"{load.errors} of {load.requests} requests failed.", f"The first: {load.first_error}")
    if load.accuracy < LEAST_ACCURACY:
        raise TsMpsError(
            f"Only {load.accuracy:.1%} of the answers are right; the model reaches {LEAST_ACCURACY:.0%} elsewhere.",
            "Answers may have been mixed up: please report this with your TorchServe and torch versions.",
        )


def _render(options: argparse.Namespace, status: Status, load: DemoLoad, curl: Sequence[str]) -> None:
    if options.json:
        value: dict[str, Any] = {"version": RESULT_VERSION, "load": asdict(load), "status": status.as_json()}
        print_json({**value, "curl": list(curl)})
        return
    show(status_text(status), "")
    attached = sum(1 for worker in status.workers if worker.attached)
    proof = f"{attached} of {len(status.workers)} workers are proven MPS clients" if status.mps == "on" else ""
    show(
        f"[bold]{load.requests}[/] PNG images over REST in {load.seconds:.1f} s: "
        f"[bold]{load.accuracy:.1%}[/] right, [bold]{load.requests_per_second:.0f}[/] requests/s, "
        f"p50 {load.p50_ms:.1f} ms, p99 {load.p99_ms:.1f} ms, {load.errors} errors"
        + (f"\n[bold]{proof}[/]" if proof else "")
    )
    if curl:
        show("", "The server stays up. Try, then stop it:", *curl)


def _curl(prepared: Prepared, store: Path) -> tuple[str, ...]:
    """Lines that work as pasted; a key is read by the shell from TorchServe's file and never printed."""
    state = load_state(prepared.paths)
    if state is None or state.endpoints.key_file is None:
        raise NotReadyError(f"The state file {prepared.paths.state} is gone.")
    image = store / f"{run.MODEL}-sample.png"
    image.write_bytes(run.load_digits().images[0])
    inference, management = call_url(state.endpoints.inference), call_url(state.endpoints.management)
    keys = shlex.quote(state.endpoints.key_file)

    def bearer(kind: str) -> str:
        script = f"import json,sys; print(json.load(open(sys.argv[1]))['{kind}']['key'])"
        return f'-H "Authorization: Bearer $({shlex.quote(sys.executable)} -c \\"{script}\\" {keys})"'.replace(
            '\\"', '"'
        )

    where = f" --runtime-dir {shlex.quote(str(prepared.home.root))}"
    return (
        f"curl -s {bearer('inference')} -T {shlex.quote(str(image))} {inference}/predictions/{run.MODEL}",
        f"curl -s {bearer('management')} {management}/models/{run.MODEL}",
        f"curl -s {bearer('API')} '{management}/token?type=inference'   # a fresh key after 60 minutes",
        f"ts-mps status --name {prepared.paths.name}{where}",
        f"ts-mps stop --name {prepared.paths.name}{where}",
    )

"""The worker that TorchServe starts through ``worker-python``: TorchServe's own, with one step overridden.

TorchServe tells a worker its GPU and model only in the LOAD message, and the handler's file is imported after it.
So :meth:`Worker.load_model` is the one place where any handler, unchanged, can be given a slot, an environment and a
daemon before it touches CUDA. The loop, the protocol and the handler contract stay TorchServe's.

Called as ``python -m ts_mps.torchserve.worker HOME INSTANCE -- <arguments of ts/model_service_worker.py>``.
"""

from __future__ import annotations

import cProfile
import logging
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from ts import model_service_worker as stock
from ts.arg_parser import ArgParser

from ts_mps.errors import TsMpsError
from ts_mps.events import Event, record
from ts_mps.files import is_locked, read_json
from ts_mps.mps.control import Control
from ts_mps.mps.limits import percentage_of
from ts_mps.paths import Home, InstancePaths
from ts_mps.plan.model import Plan, PlannedGpu, Slot
from ts_mps.slots import Claim, claim
from ts_mps.torchserve.attach import NotAClient, environment, prove, share_of, take_share, wait_for_daemon
from ts_mps.torchserve.counting import count_batches
from ts_mps.torchserve.failures import WorkerFailure, record_failure
from ts_mps.torchserve.faults import Fault, Watch
from ts_mps.torchserve.leaving import guard, leave
from ts_mps.torchserve.listening import can_listen, listen
from ts_mps.torchserve.reading import read_buffered


class NotLoaded(Exception):
    """This worker does not load, and ends without an answer to LOAD.

    On an answer that says so TorchServe 0.12.0 gathers a batch for the worker all the same, which is ending by then
    (``WorkerThread.run`` goes on after WORKER_ERROR): those requests get 507 "Worker died.", and what it is gathering
    when the connection closes gets no answer at all. Without an answer its thread still waits for one at that time, has
    nothing in its hands, and starts a successor in the same way.
    """


class Worker(stock.TorchModelServiceWorker):  # type: ignore[misc]
    """TorchServe's worker, which takes its slot before it loads and proves itself before it serves."""

    def __init__(self, home: Home, instance: InstancePaths, arguments: Any) -> None:
        super().__init__(
            arguments.sock_type,
            arguments.sock_name,
            arguments.host,
            arguments.port,
            arguments.metrics_config,
            arguments.async_comm,
        )
        self._home = home
        self._instance = instance
        self._claim: Claim | None = None
        self._gpu: PlannedGpu | None = None
        self._watch = Watch()

    def load_model(self, load_model_request: dict[str, Any]) -> tuple[Any, str, int]:
        """Claim, attach, load with TorchServe's own code, prove.

        Returns:
            The service, a message and 200, as TorchServe's own.

        Raises:
            NotLoaded: The worker is refused, or TorchServe's own code turned what the handler raised into another code.
            Exception: Whatever else the handler raised; TorchServe's own loop ends the process on each.
        """
        model = load_model_request["modelName"].decode()
        version = _model_version(Path(load_model_request["modelPath"].decode()))
        errors = _LoadErrors()
        logging.getLogger().addHandler(errors)
        self._watch.begin()
        try:
            service, message, code = self._attach_and_load(model, version, load_model_request)
        except TsMpsError as error:
            logging.error("%s", error)
            again = isinstance(error, NotAClient)
            record_failure(self._instance, WorkerFailure(os.getpid(), model, version, str(error), error.details, again))
            raise NotLoaded(str(error)) from error
        except Exception as error:
            self._failed(model, version, f"{type(error).__name__}: {error}", traceback.format_exc(), error)
            raise
        finally:
            logging.getLogger().removeHandler(errors)
        if code != 200:
            self._failed(model, version, errors.what, errors.traceback, errors.error)
            raise NotLoaded(f"{code} - {message}")
        return service, message, code

    def attached(self) -> None:
        """Called with the slot's environment set and its daemon there, before the handler's file is imported."""

    def _attach_and_load(
        self, model: str, version: str | None, load_model_request: dict[str, Any]
    ) -> tuple[Any, str, int]:
        plan = Plan.from_json(read_json(self._instance.plan) or {})
        on_gpu = "gpu" in load_model_request and bool(plan.gpus)
        self._claim = claim(self._home, self._instance, plan, model, version, on_gpu=on_gpu, socket=str(self.sock_name))
        slot = self._claim.record.slot
        self._gpu = gpu = plan.gpu(slot.gpu) if slot.gpu else None
        control = self._attach(slot, gpu)
        self.attached()
        checked = _check_share(gpu)
        if gpu is not None:
            # CUDA shows the handler exactly one device, its slot's.
            load_model_request["gpu"] = 0
        service, message, code = super().load_model(load_model_request)
        if code == 200:
            proof = prove(gpu, control, model) if gpu is not None and control is not None else None
            listens = not self.async_comm and can_listen(service.context.model_yaml_config)
            self._claim.ready(proof, replace(share_of(gpu), checked=checked), listens=listens)
            # What a load tried and got over, as a warm-up does that finds out what fits, is no fault of a batch.
            self._watch.forget()
            guard(service, self._watch, self._tell, asynchronous=self.async_comm)
            if not self.async_comm:
                count_batches(service, self._claim.activity)
            if listens:
                listen(service, self._claim.activity, lambda: is_locked(self._instance.guardian_lock))
        return service, message, code

    def _tell(self, fault: Fault) -> str:
        """Record that this worker lost its GPU; returns the sentence for the clients of its batch."""
        model = self._claim.record.slot.model if self._claim is not None else ""
        where, uuid = (self._gpu.label, self._gpu.uuid) if self._gpu is not None else ("its device", "")
        text = f"A worker of model {model} lost {where}: {fault}."
        # TorchServe kills the process once it has the answer, so this comes first.
        event = Event("worker-fault", text, gpu=uuid, model=model, pid=os.getpid(), cause=fault.cause)
        record(self._instance, event)
        logging.error("%s It leaves; TorchServe starts another one.", text)
        return (
            f"While this batch ran, the worker lost {where} ({fault}), and this worker is being replaced. "
            "The request may be sent again."
        )

    def _failed(self, model: str, version: str | None, what: str, trace: str, error: Exception | None) -> None:
        """Record a handler that did not load; a process that lost its GPU meanwhile ends here, past CUDA's clean-up."""
        fault = self._watch.verdict(error)
        failure = WorkerFailure(os.getpid(), model, version, what, trace, again=fault is not None)
        record_failure(self._instance, failure)
        if fault is not None:
            self._tell(fault)
            leave()

    def _attach(self, slot: Slot, gpu: PlannedGpu | None) -> Control | None:
        """Take the slot's share and wait for its GPU's daemon; None without MPS."""
        take_share(slot, environment(slot, gpu, self._instance.no_mps))
        if gpu is None or gpu.pipe is None:
            return None
        control = Control(Path(gpu.pipe))
        wait_for_daemon(gpu, control)
        return control


def _check_share(gpu: PlannedGpu | None) -> float | None:
    """Check the arithmetic of a worker whose SMs are limited; the seconds it took, None for any other worker.

    It comes before the handler, while no memory is taken, no library is configured and no load time is lost. The price:
    such a handler finds CUDA in use, too late for settings that count only before (PYTORCH_CUDA_ALLOC_CONF).

    Raises:
        MpsError: A product is wrong, or cannot be computed.
    """
    if gpu is None or gpu.pipe is None or (percentage := percentage_of(os.environ)) is None:
        return None
    from ts_mps.torchserve.numerics import check  # imports torch, which other workers may not need

    return check(gpu, percentage)


class _LoadErrors(logging.Handler):
    """Keeps the traceback that TorchServe logs for a RuntimeError at load before it turns it into a bare code."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.what = "TorchServe could not load the model"
        self.traceback = ""
        self.error: Exception | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.what = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            self.error = record.exc_info[1] if isinstance(record.exc_info[1], Exception) else None
            self.traceback = "".join(traceback.format_exception(*record.exc_info))


def _quiet(record: logging.LogRecord) -> bool:
    """Drop the one line that TorchServe's worker prints for every batch."""
    return not record.msg.startswith("Backend received inference at")


def _model_version(model_dir: Path) -> str | None:
    """The archive's version: the LOAD message does not carry it."""
    manifest = read_json(model_dir / "MAR-INF" / "MANIFEST.json") or {}
    version = manifest.get("model", {}).get("modelVersion")
    return str(version) if version is not None else None


def main(arguments: list[str]) -> int:
    """Do what the ``__main__`` block of ts/model_service_worker.py does, with :class:`Worker`.

    Returns:
        1, as TorchServe's own worker, which only ever ends by failing or by being disconnected (exit status 0).
    """
    home, name, _, *rest = arguments
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    logging.getLogger().handlers[0].addFilter(_quiet)
    instance = Home(Path(home)).instance(name)
    parsed = ArgParser.model_service_worker_args().parse_args(rest)
    if stock.BENCHMARK:
        # TorchServe's loop expects the profiler that its own __main__ block makes for TS_BENCHMARK.
        stock.pr = cProfile.Profile()
    read_buffered()
    try:
        Worker(Home(Path(home)), instance, parsed).run_server()
    except TimeoutError:
        logging.error("Backend worker did not receive connection in: %d", stock.SOCKET_ACCEPT_TIMEOUT)
    except NotLoaded as error:  # why has been logged
        logging.error("Backend worker process ends without a model: %s", error)
    except Exception:
        logging.exception("Backend worker process died.")
    finally:
        if parsed.sock_type == "unix" and parsed.sock_name:
            Path(parsed.sock_name).unlink(missing_ok=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

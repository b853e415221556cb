"""A model archive behind LitServe: the peer that a user might pick in place of TorchServe.

Called as ``python -m ts_mps.bench.peers.litserve_server FOLDER --port P ...``. The archive's own handler runs, loaded
by TorchServe's own loader, so that the two servers differ and the model code does not. Batching, worker processes and
HTTP are LitServe's, with its defaults but for two things: answers go over ZeroMQ (``fast_queue``), as LitServe advises
for hundreds of requests per second, and no request times out in its queue, as none does in TorchServe's.
"""

# Annotations are read by LitServe and FastAPI as objects, so this module does not postpone them.
import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import litserve
from fastapi import Body, Request, Response
from ts.context import RequestProcessor
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.model_loader import TsModelLoader

from ts_mps.torchserve.config import DATA

#: Body, content type and status of one answer.
_Answer = tuple[bytes, str, int]


class ArchiveApi(litserve.LitAPI):  # type: ignore[misc]
    """One worker's copy of the handler.

    Args:
        folder: The unpacked archive.
        path: URL path that predictions are asked at.
        batch_size: Most requests in a batch.
        batch_seconds: How long LitServe waits for a batch to fill.
        content_type: Of every request.
        loaded: Folder in which each worker leaves a file named by its pid when its model is loaded.
    """

    def __init__(
        self, folder: Path, path: str, batch_size: int, batch_seconds: float, content_type: str, loaded: Path
    ) -> None:
        super().__init__(max_batch_size=batch_size, batch_timeout=batch_seconds, api_path=path)
        self._folder = folder
        self._size = batch_size
        self._content_type = content_type
        self._loaded = loaded
        self._service: Any = None

    def setup(self, device: str) -> None:
        """Load the handler; LitServe calls it once in each worker."""
        sys.path.insert(0, str(self._folder))
        manifest = json.loads((self._folder / "MAR-INF" / "MANIFEST.json").read_text())
        gpu = int(device.partition(":")[2] or 0) if device.startswith("cuda") else None
        # A handler may count; nobody reads it here.
        metrics = MetricsCacheYamlImpl(str(DATA / "metrics.yaml"))
        metrics.initialize_cache()
        metrics.model_name = manifest["model"]["modelName"]
        self._service = TsModelLoader().load(
            manifest["model"]["modelName"],
            str(self._folder),
            manifest["model"]["handler"],
            gpu,
            self._size,
            metrics_cache=metrics,
        )
        (self._loaded / str(os.getpid())).touch()

    def batch(self, inputs: Sequence[Any]) -> list[Any]:
        """Bodies of one batch; the handler takes them as they are."""
        return list(inputs)

    def predict(self, inputs: Any) -> Any:
        """Answers of a batch; of one request where LitServe makes no batches."""
        return self._answers(inputs) if self._size > 1 else self._answers([inputs])[0]

    def unbatch(self, output: list[_Answer]) -> list[_Answer]:
        """The answers, one for each request."""
        return output

    def encode_response(self, output: _Answer) -> Response:
        """An answer with the status and content type that the handler set."""
        body, content_type, status = output
        return Response(content=body, status_code=status, media_type=content_type or None)

    def _answers(self, bodies: Sequence[Any]) -> list[_Answer]:
        """What TorchServe's own worker does with a batch: Service.predict, without its log of times."""
        context = self._service.context
        headers = {"content-type": self._content_type}
        context.request_processor = [RequestProcessor({"body": headers, **headers}) for _ in bodies]
        context.request_ids = {place: str(place) for place in range(len(bodies))}
        results = self._service._entry_point([{"body": body} for body in bodies], context)
        return [
            (
                _encoded(result),
                context.get_response_content_type(index) or "",
                context.get_response_status(index)[0] or 200,
            )
            for index, result in enumerate(results)
        ]


class RawArchiveApi(ArchiveApi):
    """For bodies of any type but JSON."""

    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes | str:
        """The body as TorchServe hands it to a handler: as it came, or as a text where its type says so."""
        return request.decode() if self._content_type.startswith("text") else request


class JsonArchiveApi(ArchiveApi):
    """For JSON, which LitServe parses before anyone else sees it, as TorchServe's worker does."""

    def decode_request(self, request: Request) -> Any:
        """The body's value."""
        return request


def _parsed(content_type: str) -> bool:
    """Whether FastAPI parses such a body as JSON, whatever it is asked for (its ``get_request_handler``)."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _encoded(result: Any) -> bytes:
    """As TorchServe's create_predict_response."""
    if isinstance(result, (bytes, bytearray)):
        return bytes(result)
    return (result if isinstance(result, str) else json.dumps(result)).encode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(description="Serve an unpacked model archive with LitServe.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/predictions/model")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--batch-delay-ms", type=float, default=0.0)
    parser.add_argument("--content-type", default="", help="of every request; empty for none")
    parser.add_argument("--accelerator", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--loaded", type=Path, required=True, help="existing folder for the pids of loaded workers")
    options = parser.parse_args(arguments)
    kind = JsonArchiveApi if _parsed(options.content_type) else RawArchiveApi
    api = kind(
        options.folder,
        options.path,
        options.batch_size,
        options.batch_delay_ms / 1000,
        options.content_type,
        options.loaded,
    )
    server = litserve.LitServer(
        api,
        accelerator=options.accelerator,
        devices=1,
        workers_per_device=options.workers,
        timeout=False,
        fast_queue=True,
    )
    # LitServe ends its processes in order on a Ctrl-C only; on SIGTERM it would leave them behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()

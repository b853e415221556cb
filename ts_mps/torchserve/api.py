"""TorchServe's own REST API: what is loaded, which workers are ready, scale, ping, predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ts_mps.torchserve.addresses import Address
from ts_mps.torchserve.client import TIMEOUT, ApiError, Client


@dataclass(frozen=True)
class WorkerStatus:
    """One worker as TorchServe describes it.

    Args:
        id: TorchServe's number of the worker, such as "9000".
        pid: Process id; 0 or less before the process is there.
        status: "READY", or "UNLOADING" while it loads, retries or stops.
        gpu: TorchServe's gpuUsage; "N/A" on CPU.
    """

    id: str
    pid: int
    status: str
    gpu: str

    @property
    def ready(self) -> bool:
        """Whether it has loaded its model."""
        return self.status == "READY"


@dataclass(frozen=True)
class ModelStatus:
    """One version of one model as TorchServe describes it.

    Args:
        name: Model name.
        version: Model version.
        min_workers: Workers that TorchServe keeps.
        max_workers: Workers above which it stops some.
        batch_size: Largest batch.
        workers: Its workers.
        pending_requests: Requests in its queue, not counting those in a worker.
        response_timeout: Seconds after which TorchServe ends a worker that does not answer a batch; 0 if it does not
            say.
        retry_seconds: For how long TorchServe starts a worker again that ends (maxRetryTimeoutInSec); 0: never.
    """

    name: str
    version: str
    min_workers: int
    max_workers: int
    batch_size: int
    workers: tuple[WorkerStatus, ...]
    pending_requests: int
    response_timeout: int = 0
    retry_seconds: int = 300


class Api:
    """One running TorchServe. Can be shared by threads; each has its own connections.

    Args:
        management: Where the management API listens.
        inference: Where the inference API listens.
        key_file: key_file.json in the folder where java was started; None if token authorisation is off.
        certificate: PEM file with the certificate that an https address shows.
        timeout: Seconds that an answer may take.
    """

    def __init__(
        self,
        management: Address,
        inference: Address,
        *,
        key_file: Path | None = None,
        certificate: Path | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._client = Client(management, inference, key_file, certificate, timeout)

    def models(self) -> tuple[str, ...]:
        """Names of all registered models.

        Raises:
            ApiError: No answer, or an error.
        """
        names: list[str] = []
        parameters: dict[str, str] = {"limit": "100"}
        while True:
            page = self._client.json("/models", parameters)
            names += [str(model["modelName"]) for model in page["models"]]
            if "nextPageToken" not in page:
                return tuple(names)
            parameters["next_page_token"] = str(page["nextPageToken"])

    def describe(self, name: str) -> tuple[ModelStatus, ...]:
        """Every version of a model with its workers.

        On a GPU this starts one nvidia-smi per worker inside TorchServe, so do not poll it in a tight loop.

        Raises:
            ApiError: No answer, or an error; ``status`` is 404 for an unknown model.
        """
        answer = self._client.json(f"/models/{quote(name, safe='')}/all")
        return tuple(_model_status(name, model) for model in answer)

    def scale(self, name: str, version: str, workers: int, *, synchronous: bool = False) -> None:
        """Ask for exactly ``workers`` workers of one version.

        Args:
            name: Model name.
            version: Model version.
            workers: Number wanted; 0 stops them all.
            synchronous: Wait until TorchServe says that it is done (within the timeout of this object).

        Raises:
            ApiError: No answer, or an error.
        """
        count = str(workers)
        parameters = {"min_worker": count, "max_worker": count, "synchronous": str(synchronous).lower()}
        path = f"/models/{quote(name, safe='')}/{quote(version, safe='')}"
        self._client.request("management", "PUT", path, parameters)

    def tell(self, name: str, version: str, headers: Mapping[str, str], timeout: float) -> None:
        """Send headers to whichever worker of a version comes to the end of a batch first, as a request of its own.

        It asks for a customised description, which TorchServe never hands out together with requests.

        Args:
            name: Model name.
            version: Model version.
            headers: For the worker to read.
            timeout: Seconds for its answer.

        Raises:
            ApiError: The worker answered with an error, or died; the queue is full (503); nobody answered (0).
        """
        path = f"/models/{quote(name, safe='')}/{quote(version, safe='')}"
        self._client.request("management", "GET", path, {"customized": "true"}, headers=headers, timeout=timeout)

    def ping(self) -> bool:
        """Whether TorchServe answers and calls itself healthy, which it does while workers are still loading.

        Raises:
            ApiError: It refuses our key.
        """
        try:
            self._client.request("inference", "GET", "/ping")
        except ApiError as error:
            if error.status == 0 or error.status >= 500:
                return False
            raise
        return True

    def predict(self, name: str, body: bytes, content_type: str = "application/octet-stream") -> bytes:
        """Send one inference request.

        Args:
            name: Model name; "NAME/VERSION" for a version that is not the default.
            body: The input.
            content_type: Its type; TorchServe decodes "application/json" and "text/...", the rest stays bytes.

        Returns:
            The body of the answer.

        Raises:
            ApiError: No answer, or an error of TorchServe or of the handler, whose status it has.
        """
        headers = {"Content-Type": content_type}
        return self._client.request(
            "inference", "POST", f"/predictions/{quote(name)}", body=body, headers=headers
        ).content


def _model_status(name: str, model: Mapping[str, Any]) -> ModelStatus:
    return ModelStatus(
        name=name,
        version=str(model["modelVersion"]),
        min_workers=int(model["minWorkers"]),
        max_workers=int(model["maxWorkers"]),
        batch_size=int(model["batchSize"]),
        workers=tuple(
            WorkerStatus(str(worker["id"]), int(worker["pid"]), str(worker["status"]), str(worker.get("gpuUsage", "")))
            for worker in model.get("workers") or ()
        ),
        pending_requests=int((model.get("jobQueueStatus") or {}).get("pendingRequests", 0)),
        response_timeout=int(model.get("responseTimeout", 0)),
        retry_seconds=int(model.get("maxRetryTimeoutInSec", 300)),
    )

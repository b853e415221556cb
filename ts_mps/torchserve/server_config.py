"""TorchServe's configuration with types: what ConfigManager of TorchServe 0.12.0 would read from each key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ts_mps.errors import PreflightError
from ts_mps.torchserve.addresses import Address, address

_INT_MAX = 2**31 - 1


@dataclass(frozen=True)
class ServerConfig:
    """The configuration that the server will run with. Values are not in the repr: they may hold passwords.

    Args:
        source: A sentence that says which file was chosen and why.
        path: That file; None where there is none.
        snapshot: The same file where it is a snapshot of TorchServe's, else None.
        values: Key to value as the file has them.
        resolved: Key to value as the server will see them: ``$$VARIABLE$$`` replaced, then flags, then TS_* variables.
        origins: Key to where its value stands ("FILE line 3", "--models", "TS_DEBUG").
    """

    source: str
    path: Path | None
    snapshot: Path | None
    values: Mapping[str, str] = field(repr=False)
    resolved: Mapping[str, str] = field(repr=False)
    origins: Mapping[str, str] = field(repr=False)

    @property
    def inference_address(self) -> Address:
        """REST inference; default http://127.0.0.1:8080."""
        return self._address("inference_address")

    @property
    def management_address(self) -> Address:
        """REST management; default http://127.0.0.1:8081."""
        return self._address("management_address")

    @property
    def metrics_address(self) -> Address:
        """Prometheus metrics; default http://127.0.0.1:8082. Only used where :attr:`metrics_api`."""
        return self._address("metrics_address")

    @property
    def grpc_inference_address(self) -> Address:
        """GRPC inference; default 127.0.0.1:7070."""
        return self._address("grpc_inference_port")

    @property
    def grpc_management_address(self) -> Address:
        """GRPC management; default 127.0.0.1:7071."""
        return self._address("grpc_management_port")

    @property
    def token_auth(self) -> bool:
        """Whether requests need a key (TorchServe's default)."""
        return not self.boolean("disable_token_authorization")

    @property
    def metrics_api(self) -> bool:
        """Whether the metrics address is served."""
        return self.boolean("enable_metrics_api", default=True)

    @property
    def number_of_gpu(self) -> int | None:
        """At most so many GPUs; None: all."""
        return self.integer("number_of_gpu")

    @property
    def default_workers_per_model(self) -> int:
        """Workers of a model that says nothing else; 0: as many as GPUs, else as CPUs. 1 in debug mode."""
        return 1 if self.boolean("debug") else self.integer("default_workers_per_model") or 0

    @property
    def initial_worker_port(self) -> int:
        """Number in the name of the first worker's socket."""
        port = self.integer("initial_worker_port")
        return 9000 if port is None else port

    @property
    def load_models(self) -> str | None:
        """Comma list of archives to load, "ALL", or None."""
        return self.resolved.get("load_models")

    @property
    def model_store(self) -> Path | None:
        """Folder of the archives."""
        return self._path("model_store")

    @property
    def workflow_store(self) -> Path | None:
        """Folder of the workflow archives."""
        return self._path("workflow_store")

    @property
    def models(self) -> Mapping[str, Any]:
        """The key ``models``: model name -> version -> settings."""
        return self._json("models")

    @property
    def model_snapshot(self) -> Mapping[str, Any] | None:
        """The key ``model_snapshot``, which beats :attr:`load_models`; None where it is not set."""
        return self._json("model_snapshot") if "model_snapshot" in self.resolved else None

    @property
    def keystore(self) -> Path | None:
        """Java keystore of the https addresses; beats :attr:`certificate_file`."""
        return self._path("keystore")

    @property
    def keystore_pass(self) -> str:
        """The keystore's password; default Java's "changeit"."""
        return self.resolved.get("keystore_pass", "changeit")

    @property
    def keystore_type(self) -> str:
        """The keystore's type; default PKCS12."""
        return self.resolved.get("keystore_type", "PKCS12")

    @property
    def certificate_file(self) -> Path | None:
        """PEM certificate of the https addresses; only used together with ``private_key_file``."""
        return self._path("certificate_file")

    @property
    def private_key_file(self) -> Path | None:
        """PEM private key that belongs to :attr:`certificate_file`."""
        return self._path("private_key_file")

    def boolean(self, key: str, *, default: bool = False) -> bool:
        """A switch, as ``Boolean.parseBoolean`` reads it: anything but "true" is false."""
        return self.resolved[key].lower() == "true" if key in self.resolved else default

    def integer(self, key: str) -> int | None:
        """A whole number as ``Integer.parseInt`` reads it, or None where the key is not set.

        Raises:
            PreflightError: It is no whole number of 32 bits.
        """
        text = self.resolved.get(key)
        if text is None:
            return None
        if not re.fullmatch(r"[+-]?[0-9]+", text) or not -_INT_MAX - 1 <= int(text) <= _INT_MAX:
            raise self.wrong(key, "is not a whole number")
        return int(text)

    def wrong(self, key: str, what: str) -> PreflightError:
        """The error for a value that does not do: names the place, the key and the value."""
        origin = self.origins.get(key, "the default")
        return PreflightError(f"{origin}: {key} is '{self.resolved.get(key, '')}', which {what}.")

    def _path(self, key: str) -> Path | None:
        return Path(self.resolved[key]) if key in self.resolved else None

    def _address(self, setting: str) -> Address:
        try:
            return address(self.resolved, setting)
        except PreflightError as error:
            raise PreflightError(f"{self.origins.get(setting, 'Default')}: {error.what}") from error

    def _json(self, key: str) -> Mapping[str, Any]:
        try:
            value = json.loads(self.resolved.get(key, "{}"))
        except ValueError as error:
            raise self.wrong(key, f"is no JSON ({error})") from error
        if not isinstance(value, dict):
            raise self.wrong(key, "is no JSON object")
        return value

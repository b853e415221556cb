"""Where a running TorchServe is reached, in a form that survives in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ts_mps.torchserve.addresses import Address, address
from ts_mps.torchserve.api import Api
from ts_mps.torchserve.tls import server_certificate


@dataclass(frozen=True)
class Endpoints:
    """Addresses, keys and certificate of one TorchServe.

    Attributes:
        inference: REST inference.
        management: REST management.
        metrics: Prometheus metrics; None where enable_metrics_api is off.
        key_file: The key_file.json that TorchServe writes; None without token authorisation.
        certificate: PEM file to trust for https; None where nothing is https.
    """

    inference: Address
    management: Address
    metrics: Address | None
    key_file: str | None
    certificate: str | None

    def api(self, timeout: float | None = None) -> Api:
        """A client; ``timeout`` in seconds for one answer."""
        return Api(
            self.management,
            self.inference,
            key_file=Path(self.key_file) if self.key_file else None,
            certificate=Path(self.certificate) if self.certificate else None,
            **({} if timeout is None else {"timeout": timeout}),
        )

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Endpoints:
        """Read the JSON form (``dataclasses.asdict``) back."""
        metrics = value["metrics"]
        return Endpoints(
            Address(**value["inference"]),
            Address(**value["management"]),
            Address(**metrics) if metrics else None,
            value["key_file"],
            value["certificate"],
        )


def endpoints(settings: Mapping[str, str], java: str, folder: Path, private: Path) -> Endpoints:
    """The endpoints of a TorchServe with these settings.

    Args:
        settings: Resolved values of config.properties.
        java: The java program, beside which keytool is looked for.
        folder: Working folder of java, where it writes its key file.
        private: A folder of ours for a certificate that has to be exported from a keystore.

    Raises:
        PreflightError: An address that TorchServe would refuse, or a certificate that cannot be read.
    """
    certificate = server_certificate(settings, java, private)
    token_auth = settings.get("disable_token_authorization", "false").lower() != "true"
    metrics_api = settings.get("enable_metrics_api", "true").lower() == "true"
    return Endpoints(
        address(settings, "inference_address"),
        address(settings, "management_address"),
        address(settings, "metrics_address") if metrics_api else None,
        str(folder / "key_file.json") if token_auth else None,
        str(certificate) if certificate else None,
    )

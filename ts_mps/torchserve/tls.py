"""Which certificate TorchServe will show on its https addresses."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ts_mps.errors import PreflightError

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_PASSWORD_VARIABLE = "TS_MPS_KEYSTORE_PASS"
_TIMEOUT = 30.0


def server_certificate(settings: Mapping[str, str], java: str, folder: Path) -> Path | None:
    """Find or export the certificates that TorchServe may show, as a PEM file.

    The order is TorchServe's (ConfigManager.getSslContext): ``keystore`` beats ``certificate_file`` with
    ``private_key_file``. The certificates of a keystore are exported with the keytool beside java.

    Args:
        settings: Resolved values of config.properties.
        java: Path of the java that runs TorchServe.
        folder: Where ``certificate.pem`` may be written.

    Returns:
        The PEM file, or None if no REST address is https.

    Raises:
        PreflightError: https without a certificate, or one that cannot be read.
    """
    rest = ("inference_address", "management_address", "metrics_address")
    if not any(settings.get(name, "").lower().startswith("https:") for name in rest):
        return None
    if "keystore" in settings:
        exported = folder / "certificate.pem"
        exported.write_text(_export(settings, java))
        return exported
    if "certificate_file" in settings and "private_key_file" in settings:
        certificate = Path(settings["certificate_file"])
        for path in (certificate, Path(settings["private_key_file"])):
            if not path.is_file():
                raise PreflightError(f"{path}, which config.properties names for https, is not a file.", "Check it.")
        if not _PEM.search(certificate.read_text(errors="replace")):
            raise PreflightError(f"{certificate} (certificate_file) holds no PEM certificate.", "Check the file.")
        return certificate
    raise PreflightError(
        "An address is https and config.properties names no certificate; TorchServe 0.12.0 then tries to make one, "
        "which fails on Java 17 after all workers have been started.",
        "Set certificate_file and private_key_file, or keystore and keystore_pass.",
    )


def _export(settings: Mapping[str, str], java: str) -> str:
    keystore = settings["keystore"]
    keytool = Path(java).resolve().with_name("keytool")
    command = [str(keytool), "-list", "-rfc", "-keystore", keystore, "-storepass:env", _PASSWORD_VARIABLE]
    command += ["-storetype", settings.get("keystore_type", "PKCS12")]
    # By the environment, because every user of the machine can read a command line.
    environ = {**os.environ, _PASSWORD_VARIABLE: settings.get("keystore_pass", "changeit")}
    try:
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT
        )
    except FileNotFoundError as error:
        raise PreflightError(
            f"There is no keytool beside {java}, so the certificate in {keystore} cannot be read.",
            "Use a Java that has it, or certificate_file and private_key_file instead of a keystore.",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise PreflightError(
            f"keytool did not read the keystore {keystore} in {_TIMEOUT:.0f} s.", "Check the file."
        ) from error
    certificates = _PEM.findall(done.stdout)
    if done.returncode != 0 or not certificates:
        raise PreflightError(
            f"The keystore {keystore} cannot be read, or holds no certificate.",
            "Check keystore, keystore_pass and keystore_type in config.properties.",
            (done.stdout + done.stderr).strip()[-1000:],
        )
    return "\n".join(certificates) + "\n"

"""Checks of the configuration and of what TorchServe would bind, load and prefer."""

from __future__ import annotations

from collections.abc import Mapping

from ts_mps.doctor.findings import Findings
from ts_mps.errors import TsMpsError
from ts_mps.guardian.prepare import check_not_running, server_command
from ts_mps.paths import Home
from ts_mps.torchserve import config as configuration
from ts_mps.torchserve.addresses import Address
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.ports import port_problems
from ts_mps.torchserve.server_config import ServerConfig

#: TorchServe's own default, which lets anyone who reaches the management API load code from anywhere.
OPEN_URLS = "file://.*|http(s)?://.*"


def check_config(found: Findings, arguments: StartArguments, environ: Mapping[str, str]) -> ServerConfig | None:
    """The configuration file, its values, and the files that flags name."""
    config = found.attempt("configuration", lambda: configuration.load(arguments, environ), lambda c: c.source)
    if config is None:
        return None
    for error in configuration.check(config):
        found.error("configuration", error)
    if config.snapshot is not None:
        found.warn(
            "snapshot",
            f"TorchServe prefers its snapshot {config.snapshot} to ./config.properties, worker counts included.",
            "--ncs ignores snapshots; --ts-config names a file.",
        )
    return config


def check_start(found: Findings, arguments: StartArguments, home: Home, environ: Mapping[str, str]) -> None:
    """Whether it runs already, and whether the files are there that the flags name."""
    paths = home.instance(arguments.name)
    found.attempt(
        "instance", lambda: check_not_running(arguments, paths), lambda _: f"Instance {paths.name} is not running."
    )
    try:
        server_command(arguments, paths, environ, "java")
    except TsMpsError as error:
        if arguments.model_store is None and "model store" in error.what:
            found.warn("model store", "No model store was named, so archives were not checked.", error.remedy)
        else:
            found.error("files", error)
    else:
        found.ok("files", "The files and folders that the flags name are there.")


def check_ports(found: Findings, config: ServerConfig) -> None:
    """Whether every address is free."""
    try:
        problems = port_problems(config.resolved)
    except TsMpsError as error:
        found.error("ports", error)
        return
    for problem in problems:
        found.error("ports", problem)
    if not problems:
        found.ok("ports", "Every port that TorchServe listens on is free.")


def check_security(found: Findings, arguments: StartArguments, config: ServerConfig) -> None:
    """Who may call TorchServe, and what it may load."""
    tokens = config.token_auth
    if tokens:
        found.ok("token authorisation", "Every call of the management and inference API needs a key.")
    else:
        found.warn("token authorisation", "It is off.", "Leave out --disable-token-auth.")
    _addresses(found, config, tokens)
    if config.resolved.get("allowed_urls", OPEN_URLS) == OPEN_URLS:
        found.warn(
            "allowed_urls",
            "Models may be loaded from any URL, and an archive is code.",
            "Set allowed_urls in config.properties to a pattern of your own; archives in the model store always load.",
        )
    else:
        found.ok("allowed_urls", "Models are loaded from the URLs of allowed_urls only.")
    if arguments.enable_model_api or config.boolean("enable_model_api"):
        found.warn("model API", "Models can be registered through the management API.", "Leave out --enable-model-api.")


def _addresses(found: Findings, config: ServerConfig, tokens: bool) -> None:
    try:
        management, everything = (
            [config.management_address, config.grpc_management_address],
            [config.inference_address, config.metrics_address, config.grpc_inference_address],
        )
    except TsMpsError:
        return  # the configuration's own finding
    for address in (a for a in management if _open(a)):
        what = f"{address.setting}: the management API listens on {address}, and scaling needs no enable_model_api"
        remedy = "Bind it to 127.0.0.1."
        if tokens:
            found.warn("bind addresses", f"{what}; only the token stands in between.", remedy)
        else:
            found.error("bind addresses", TsMpsError(f"{what} and token authorisation is off.", remedy))
    opened = [str(address) for address in everything if _open(address)]
    if opened:
        found.warn(
            "bind addresses",
            f"Reachable from other machines: {', '.join(opened)}.",
            "Keep them behind a firewall, a service mesh or a proxy; /metrics never asks for a key.",
        )
    if not opened and not any(map(_open, management)):
        found.ok("bind addresses", "Every address is bound to this machine only.")


def _open(address: Address) -> bool:
    return bool(address.host) and not (address.host in ("localhost", "::1") or address.host.startswith("127."))

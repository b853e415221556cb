"""Checks of the configuration and of what TorchServe would bind, load and prefer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ts_mps.doctor.findings import Findings
from ts_mps.errors import TsMpsError
from ts_mps.guardian.prepare import check_not_running, server_command
from ts_mps.paths import Home
from ts_mps.torchserve import config as configuration
from ts_mps.torchserve.addresses import Address, listeners
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.model_store import url_allowed
from ts_mps.torchserve.ports import port_problems
from ts_mps.torchserve.server_config import ServerConfig

#: Addresses that nobody lists on purpose (RFC 2606): where these are allowed, every one is.
_ANYWHERE = ("http://models.invalid/model.mar", "https://models.invalid/model.mar")
#: Hosts that mean this machine only.
_LOOPBACK = ("localhost", "::1")


def check_config(found: Findings, arguments: StartArguments, environ: Mapping[str, str]) -> ServerConfig | None:
    """The configuration file and its values; None where either cannot be read."""
    config = found.attempt("configuration", lambda: configuration.load(arguments, environ), lambda c: c.source)
    if config is None:
        return None
    problems = configuration.check(config)
    for error in problems:
        found.error("configuration", error)
    if config.snapshot is not None:
        found.warn(
            "snapshot",
            f"TorchServe prefers its snapshot {config.snapshot} to ./config.properties, worker counts included.",
            "--ncs ignores snapshots; --ts-config names a file.",
        )
    return None if problems else config


def check_instance(found: Findings, arguments: StartArguments, home: Home) -> bool:
    """Whether it, or a TorchServe of this temp folder, runs already."""
    paths = home.instance(arguments.name)
    name = f"Instance {paths.name}"
    try:
        check_not_running(arguments, paths)
    except TsMpsError as error:
        found.error("instance", error)
        return True
    found.ok("instance", f"{name} is not running, and no other TorchServe holds its pid file.")
    return False


def check_files(found: Findings, arguments: StartArguments, environ: Mapping[str, str]) -> bool:
    """Whether the files and folders are there that flags and variables name.

    Returns:
        Whether there is a model store, so that archives can be looked at.
    """
    try:
        named = bool(arguments.model_store or configuration.launcher_properties(arguments, environ).get("model_store"))
        # TorchServe looks at the model store among its files; another folder stands in so that the others are seen.
        asked = arguments if named else replace(arguments, model_store=".")
        nowhere = Home(Path("/")).instance("default")  # its files are named in the command and not looked at
        server_command(asked, nowhere, environ, "java")
    except TsMpsError as error:
        found.error("files", error)
        return False
    found.ok("files", "The files and folders that flags and variables name are there.")
    if not named:
        found.warn(
            "model store",
            "No model store was named, so neither archives nor the room for their workers were checked. A start needs "
            "one.",
            "Run ts-mps doctor with the flags of your start, such as: --model-store model_store --models all",
        )
    return named


def check_ports(found: Findings, config: ServerConfig, running: bool) -> None:
    """Whether every address is free; the server that runs already holds its own."""
    if running:
        found.ok("ports", "Not tried, because the server that runs already holds them.")
        return
    try:
        problems = port_problems(config.resolved)
    except TsMpsError as error:
        found.error("ports", error)
        return
    for problem in problems:
        found.error("ports", problem)
    if not problems:
        found.ok("ports", "Every port that TorchServe listens on is free.")


def check_security(found: Findings, config: ServerConfig) -> None:
    """Who may call TorchServe, and what it may load."""
    tokens = config.token_auth
    if tokens:
        found.ok("token authorisation", "Every call of the management and inference API needs a key.")
    else:
        origin = config.origins.get("disable_token_authorization", "the configuration")
        found.warn(
            "token authorisation",
            f"It is off (by {origin}): whoever reaches a port may use and scale models.",
            "Leave out --disable-token-auth and disable_token_authorization, or keep every port from others.",
        )
    _addresses(found, config, tokens)
    if any(url_allowed(url, config.resolved) for url in _ANYWHERE):
        found.warn(
            "allowed_urls",
            "Models may be loaded from any URL, and an archive is code.",
            "Set allowed_urls in config.properties, such as allowed_urls=file:///srv/models/.* or a pattern for "
            "your own server; archives in the model store load without it.",
        )
    else:
        found.ok("allowed_urls", "Models are loaded from the URLs of allowed_urls only.")
    if config.boolean("enable_model_api"):
        found.warn(
            "model API",
            "Models can be registered and removed through the management API, and an archive is code.",
            "Leave out --enable-model-api and enable_model_api unless models must change while it serves.",
        )
    else:
        found.ok("model API", "The management API neither registers nor removes models (scaling needs no switch).")


def _addresses(found: Findings, config: ServerConfig, tokens: bool) -> None:
    opened = [address for address in listeners(config.resolved) if _open(address)]
    for address in (a for a in opened if a.setting in ("management_address", "grpc_management_port")):
        what = f"{address.setting}: the management API listens on {address} for other machines"
        remedy = "Bind it to 127.0.0.1, or switch token authorisation on and keep the port behind a firewall."
        if tokens:
            found.warn("bind addresses", f"{what}; only the token stands in between.", "Bind it to 127.0.0.1.")
        else:
            found.error("bind addresses", TsMpsError(f"{what}, and token authorisation is off.", remedy))
    others = [f"{a.setting} {a}" for a in opened if a.setting not in ("management_address", "grpc_management_port")]
    if others:
        found.warn(
            "bind addresses",
            f"Reachable from other machines: {', '.join(others)}.",
            "Keep them behind a firewall, a service mesh or a proxy; /metrics never asks for a key.",
        )
    if not opened:
        found.ok("bind addresses", "Every address is bound to this machine only.")


def _open(address: Address) -> bool:
    return bool(address.host) and address.host not in _LOOPBACK and not address.host.startswith("127.")

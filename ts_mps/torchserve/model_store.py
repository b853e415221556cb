"""Which archives ``load_models`` names, and where TorchServe finds them (ModelServer, ModelArchive)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ts_mps.errors import PreflightError

_URL = re.compile(r"(?:file|https?)://.*", re.IGNORECASE)
_ALLOWED_URLS = "file://.*|http(s)?://.*"


def named_archives(load_models: str, model_store: Path) -> list[tuple[str, str]]:
    """Split ``load_models`` into (name or "", archive).

    Raises:
        PreflightError: All models are to be loaded and the model store is not a folder.
    """
    if load_models.upper() != "ALL":
        pairs = [model.partition("=") for model in load_models.split(",")]
        return [(name, url) if equals else ("", name) for name, equals, url in pairs if (url if equals else name)]
    if not model_store.is_dir():
        raise PreflightError(f"The model store {model_store} is not a folder.", "Check --model-store.")
    kinds = (".mar", ".model", ".tar.gz")
    files = [path for path in sorted(model_store.iterdir()) if not path.name.startswith(".")]
    return [("", path.name) for path in files if path.is_dir() or path.name.endswith(kinds)]


def default_name(url: str) -> str:
    """The name that TorchServe gives a model that has none (ModelServer.getDefaultModelName)."""
    name = url.rpartition("/")[2]
    if ".model" in url or ".mar" in url:
        name = name.rpartition(".")[0]
    return re.sub(r"\W|^_", "_", name, flags=re.ASCII)


def locate(url: str, settings: Mapping[str, str], store: Path) -> Path | None:
    """Find the archive as ModelArchive.downloadModel does.

    Args:
        url: What ``--models`` or ``load_models`` names.
        settings: Resolved values of config.properties.
        store: The model store.

    Returns:
        The file or folder; None for one that TorchServe will download.

    Raises:
        PreflightError: TorchServe would not find it, or not take it.
    """
    if ".." in url:
        raise PreflightError(f"TorchServe takes no '..' in the model {url}.", "Write the archive's name only.")
    if not _URL.fullmatch(url):
        return in_store(url, store)
    if not url_allowed(url, settings):
        raise PreflightError(f"allowed_urls does not allow the model {url}.", "Add it to allowed_urls.")
    copy = store / _file_name(urlsplit(url).path)
    if copy.exists():
        raise PreflightError(
            f"TorchServe will not load {url}, because {copy} exists already and it does not overwrite.",
            f"Name {copy.name} instead of the URL, or remove the file.",
        )
    return Path(url2pathname(urlsplit(url).path)) if url.lower().startswith("file:") else None


def url_allowed(url: str, settings: Mapping[str, str]) -> bool:
    """Whether ``allowed_urls`` lets TorchServe load this URL; by default every one."""
    return any(_matches(pattern, url) for pattern in settings.get("allowed_urls", _ALLOWED_URLS).split(","))


def in_store(url: str, store: Path) -> Path:
    """A file of the model store, else a folder by its own path, else a folder of the model store.

    Raises:
        PreflightError: There is none of them.
    """
    inside = store / _file_name(url)
    if inside.is_file():
        return inside
    for folder in (Path(url), inside):
        if folder.is_dir():
            return folder
    raise PreflightError(
        f"The model archive {url} is not in the model store {store}.",
        "Put it there (TorchServe loads files from nowhere else), or correct --models or load_models.",
    )


def _matches(pattern: str, url: str) -> bool:
    try:
        return re.fullmatch(pattern, url, re.IGNORECASE) is not None
    except re.error:  # Java's syntax has a little more than Python's; TorchServe itself will judge
        return True


def _file_name(url: str) -> str:
    return re.split(r"[/\\]", url)[-1]

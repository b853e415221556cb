"""The keys of TorchServe's token authorisation, which it writes into key_file.json in its working folder.

No key is ever logged, printed or put into an error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Keys:
    """What key_file.json holds.

    Args:
        management: Key of the management API.
        inference: Key of the inference API.
        api: Key that renews the two others; it never expires.
    """

    management: str = field(repr=False)
    inference: str = field(repr=False)
    api: str = field(repr=False)

    def of(self, kind: str) -> str:
        """The key of "management" or "inference"."""
        return self.management if kind == "management" else self.inference


class KeyFile:
    """key_file.json, read at every use, since TorchServe and whoever renews a key change it at any time.

    Args:
        path: The file, in the folder where java was started.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: Keys | None = None

    def read(self) -> Keys | None:
        """The keys; the last ones known if the file is gone or half written, None if there were none yet.

        TorchServe rewrites the file in place, so a reader can meet it empty; and ``torchserve --stop`` deletes the
        one in its own working folder, whoever's it is, while the server goes on taking the keys.
        """
        try:
            value = json.loads(self.path.read_text())
            self._last = Keys(*(str(value[kind]["key"]) for kind in ("management", "inference", "API")))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return self._last

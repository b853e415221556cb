"""Answers at once: what TorchServe itself can pass through its frontend and a worker."""

from __future__ import annotations

from typing import Any


class Noop:
    """The same answer to everything."""

    def initialize(self, context: Any) -> None:
        """Nothing to load."""

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """One fixed answer for each request."""
        return [{"label": 0, "score": 0.0} for _ in data]

"""What a check found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from ts_mps.errors import TsMpsError

Level = Literal["ok", "warning", "error"]
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: What was looked at, in a word or two.
        level: "ok", "warning" (a start goes on) or "error" (a start would fail, or its
            management API would be open to everybody).
        what: What was found, a sentence.
        remedy: What to do; empty where nothing is to be done.
    """

    check: str
    level: Level
    what: str
    remedy: str = ""


class Findings:
    """Collects findings in the order of the checks."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def ok(self, check: str, what: str) -> None:
        """Nothing to do."""
        self.all.append(Finding(check, "ok", what))

    def warn(self, check: str, what: str, remedy: str) -> None:
        """A start goes on, and one should know."""
        self.all.append(Finding(check, "warning", what, remedy))

    def error(self, check: str, error: TsMpsError) -> None:
        """A start would fail with this error."""
        self.all.append(Finding(check, "error", error.what, error.remedy))

    def attempt(self, check: str, look: Callable[[], T], good: Callable[[T], str]) -> T | None:
        """Do what a start would do: its error is the finding, else ``good`` says what is well."""
        try:
            value = look()
        except TsMpsError as error:
            self.error(check, error)
            return None
        self.ok(check, good(value))
        return value

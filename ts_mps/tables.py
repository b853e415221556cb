"""Tables of a file that people write (TOML, JSON), read key by key: what is not meant is refused with its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn, TypeGuard, TypeVar

from ts_mps.errors import PreflightError

T = TypeVar("T")

#: More bytes than any GPU or model has: whoever writes more means something else.
MOST_BYTES = 2**50
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class Table:
    """One table of a file.

    Args:
        value: What the parser made of it.
        place: File and table, as sentences name them: "ts-mps.toml: [plan]".
        known: Every key that it may have.

    Raises:
        PreflightError: It is no table, or has a key that is not known.
    """

    value: Mapping[str, Any]
    place: str
    known: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.value, Mapping):
            raise PreflightError(f"{self.place} is {told(self.value)}; it must be a table.")
        for key in self.value:
            if key not in self.known:
                near = get_close_matches(key, self.known, 1)
                raise PreflightError(
                    f"{self.place} has the unknown key '{key}'.",
                    f"Did you mean '{near[0]}'?" if near else f"Known keys: {', '.join(self.known)}.",
                )

    def refuse(self, key: str, must: str) -> NoReturn:
        """Say that a key's value is not what it must be.

        Raises:
            PreflightError: Always.
        """
        if key not in self.value:
            raise PreflightError(f"{self.place} lacks the key '{key}'; it must be {must}.")
        raise PreflightError(f"{self.place} {key} is {told(self.value[key])}; it must be {must}.")

    def integer(self, key: str, least: int, most: int) -> int:
        """A whole number in [least, most].

        Raises:
            PreflightError: It is missing, or anything else.
        """
        value = self.value.get(key)
        if not is_integer(value) or not least <= value <= most:
            self.refuse(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, least: float, most: float, *, above: bool = False, below: bool = False) -> float:
        """A number in [least, most]; with ``above`` not ``least`` itself, with ``below`` not ``most`` itself.

        Raises:
            PreflightError: It is missing, or anything else (NaN, infinity and true are no numbers here).
        """
        value = self.value.get(key)
        inside = is_number(value) and least <= value <= most
        if not is_number(value) or not inside or (above and value == least) or (below and value == most):
            start = f"above {least:g} and" if above else f"from {least:g}"
            end = f"up to {most:g}" if not below else f"and below {most:g}"
            self.refuse(key, f"a number {start} {end}")
        return float(value)

    def text(self, key: str) -> str:
        """A text that is not empty.

        Raises:
            PreflightError: It is missing, or anything else.
        """
        value = self.value.get(key)
        if not isinstance(value, str) or not value.strip():
            self.refuse(key, "a text that is not empty")
        return value

    def one_of(self, key: str, choices: Sequence[str]) -> str:
        """One of some words.

        Raises:
            PreflightError: It is missing, or anything else.
        """
        value = self.value.get(key)
        if not isinstance(value, str) or value not in choices:
            self.refuse(key, "one of " + ", ".join(f'"{choice}"' for choice in choices))
        return value

    def boolean(self, key: str) -> bool:
        """True or false.

        Raises:
            PreflightError: It is missing, or anything else.
        """
        value = self.value.get(key)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def size(self, key: str, least: int = 0) -> int:
        """Bytes: a whole number of them, or a text with a unit, such as "520 MiB" or "1.5 GiB".

        Raises:
            PreflightError: It is missing, or anything else.
        """
        value = self.value.get(key)
        size = parse_size(value) if isinstance(value, str) else value
        if not is_integer(size) or not least <= size <= MOST_BYTES:
            start = f"of {least:,} byte{'' if least == 1 else 's'}"
            self.refuse(key, f'a size {start} to 1,024 TiB, such as "520 MiB", "1.5 GiB" or whole bytes')
        return size

    def items(self, key: str) -> Sequence[Any]:
        """A list, of anything.

        Raises:
            PreflightError: It is missing, or anything else.
        """
        value = self.value.get(key)
        if not isinstance(value, list | tuple):
            self.refuse(key, "a list")
        return value

    def optional(self, key: str, read: Callable[[str], T], default: T) -> T:
        """What ``read`` makes of the key; the default where the table does not have it."""
        return read(key) if key in self.value else default


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is a whole number; true and false, which Python counts among them, are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number; true and false are not. NaN is one, but lies in no range."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_size(text: str) -> int | None:
    """Bytes that a text such as "520 MiB" names; None if it names none.

    Decimal units (MB, GB) are not taken: on GPUs they are used for both meanings, 7 % apart at GB.
    """
    text = text.strip()
    for unit in sorted(_UNITS, key=len, reverse=True):
        if text.endswith(unit):
            try:
                return round(float(text.removesuffix(unit)) * _UNITS[unit])
            except (ValueError, OverflowError):
                return None
    return None


def told(value: object) -> str:
    """A value as a sentence shows it, cut where it is long."""
    if value is None:
        return "null"  # only JSON has it
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        text = f"'{value}'" if isinstance(value, str) else str(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."

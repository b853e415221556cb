"""What is sent, where to, and how the answers are checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ts_mps.bench.records import Load
from ts_mps.errors import UsageError

KINDS = ("closed", "poisson", "constant")
CHECKS = ("status", "reference")


@dataclass(frozen=True)
class Spec:
    """One load on one model.

    Attributes:
        base_url: TorchServe's inference address, such as ``http://127.0.0.1:8080``.
        path: Path of the URL: ``/predictions/NAME``.
        load: Kind, connections or rate, times and seed. Infinite ``seconds`` stand for "until it is stopped".
        bodies: Folder that :func:`ts_mps.bench.load.write_bodies` wrote; empty where the caller has them otherwise.
        processes: That make the load; they share connections or arrivals evenly.
        timeout: Seconds that an answer may take: from sending on, in an open loop from the planned instant on.
        check: "status": an answer of status 200 that is not empty is right; "reference": it must also say what the
            recorded answer to the same body said.
        references: The file of recorded answers, for "reference".
        token: TorchServe's inference token; empty for none.

    Raises:
        UsageError: A value that cannot be used.
    """

    base_url: str
    path: str
    load: Load
    bodies: Path = Path()
    processes: int = 1
    timeout: float = 60.0
    check: str = "status"
    references: Path = Path()
    token: str = ""

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise UsageError(f"This load cannot be made: {problem}.")

    def _problem(self) -> str:
        load = self.load
        wrong = {
            f"the address {self.base_url!r} does not begin with http:// or https://": not self.base_url.startswith(
                ("http://", "https://")
            ),
            f"the path {self.path!r} does not begin with a slash": not self.path.startswith("/"),
            f"there is no kind {load.kind!r}, only {', '.join(KINDS)}": load.kind not in KINDS,
            f"there is no check {self.check!r}, only {', '.join(CHECKS)}": self.check not in CHECKS,
            f"{self.processes} processes are less than one": self.processes < 1,
            f"a timeout of {self.timeout} s is not a positive number": not 0 < self.timeout < math.inf,
            f"{load.seconds} s are not a positive time": not load.seconds > 0,
            f"a warm-up of {load.warm_up} s is not possible": not 0 <= load.warm_up < math.inf,
            f"{load.connections} connections are less than one": load.kind == "closed" and load.connections < 1,
            f"{load.rate} requests per second are not a positive rate": load.kind != "closed"
            and not 0 < load.rate < math.inf,
            "the check by reference needs a file of references": self.check == "reference" and not self.references.name,
        }
        return next((sentence for sentence, is_so in wrong.items() if is_so), "")

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {**asdict(self), "bodies": str(self.bodies), "references": str(self.references)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Spec:
        """Read the JSON form back."""
        paths = {name: Path(value[name]) for name in ("bodies", "references")}
        return Spec(**{**value, **paths, "load": Load(**value["load"])})

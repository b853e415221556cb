"""The generator of :mod:`ts_mps.bench.load`, as a study uses it: one call for each arm and load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ts_mps.bench.load import Spec, generate, record_references
from ts_mps.bench.records import Arm, Load, LoadResult


@dataclass(frozen=True)
class Generator:
    """Sends a load.

    Attributes:
        model: Name under which every server serves the model.
        bodies: Folder of payloads that :func:`ts_mps.bench.load.write_bodies` wrote.
        scratch: Folder for the recorded answers.
        cores: Cores of the generator.
        processes: That make the load.
        check: "status" or "reference".
        timeout: Seconds that an answer may take.
    """

    model: str
    bodies: Path
    scratch: Path
    cores: Sequence[int]
    processes: int
    check: str
    timeout: float

    def __call__(self, url: str, arm: Arm, load: Load) -> LoadResult:
        """Send a load; with the check "reference" the first server that is met answers each payload beforehand.

        One server's answers judge all others, so an arm that answers otherwise than the first one is found, whichever
        of the two is wrong. A no-op arm has no right answers, only answers.

        Args:
            url: The server's address.
            arm: What is served there.
            load: What is sent.

        Raises:
            TsMpsError: The generator failed, or no answers could be recorded.
        """
        references = self.scratch / "references.json"
        spec = Spec(
            base_url=url,
            path=f"/predictions/{self.model}",
            load=load,
            bodies=self.bodies,
            processes=self.processes if load.kind != "closed" else min(self.processes, load.connections),
            timeout=self.timeout,
            check="status" if arm.noop else self.check,
            references=references,
        )
        if spec.check == "reference" and not references.exists():
            record_references(spec)
        return generate(spec, self.cores)

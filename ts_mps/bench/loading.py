"""The generator of :mod:`ts_mps.bench.load`, as a study uses it: one call for each arm and load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ts_mps.bench.load import Spec, record_references, standby
from ts_mps.bench.records import Arm, Load, LoadResult

#: Sends a load to a server's address and says what came back.
Send = Callable[[str], LoadResult]


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

    @contextmanager
    def __call__(self, arm: Arm, load: Load) -> Iterator[Send]:
        """Start the processes of a load; what is entered sends it, and none of them is left afterwards.

        With the check "reference" the first server that is met answers each payload beforehand. One server's answers
        judge all others, so an arm that answers otherwise than the first one is found, whichever of the two is wrong.
        A no-op arm has no right answers, only answers.

        Args:
            arm: What will be served.
            load: What will be sent.

        Raises:
            TsMpsError: The generator cannot be started. Sending raises it where the generator failed, or where no
                answers could be recorded.
        """
        processes = self.processes if load.kind != "closed" else min(self.processes, load.connections)
        references = self.scratch / "references.json"
        with standby(load, processes, self.cores) as waiting:

            def send(url: str) -> LoadResult:
                spec = Spec(
                    base_url=url,
                    path=f"/predictions/{self.model}",
                    load=load,
                    bodies=self.bodies,
                    processes=processes,
                    timeout=self.timeout,
                    check="status" if arm.noop else self.check,
                    references=references,
                )
                if spec.check == "reference" and not references.exists():
                    record_references(spec)
                return waiting.send(spec)

            yield send

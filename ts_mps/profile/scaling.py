"""Several workers at once, each driven by a process of its own: requests per second of all together."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

from ts_mps.plan.profile import ScaleRun
from ts_mps.profile.arithmetic import percentile
from ts_mps.profile.channel import Channel
from ts_mps.profile.frontend import ANSWER_SECONDS, BadAnswer, NoMemory
from ts_mps.profile.job import Job
from ts_mps.profile.messages import Disconnected
from ts_mps.profile.stage import Stage
from ts_mps.profile.team import Member, Team

#: Seconds for a feeder to start and read the payloads.
_READY_SECONDS = 120.0
#: Seconds from the word to the start, so that all have heard it.
_NOTICE = 0.1
#: Seconds of batches before a window: at first clocks and caches settle, later only the pipeline fills.
_FIRST_WARM = 1.0
_NEXT_WARM = 0.2


def measure_scale(job: Job, stage: Stage, workers: int, *, mps: bool) -> ScaleRun:
    """Start so many workers, wait until all are loaded, and count what they answer in the same windows.

    Raises:
        NoMemory: They do not all fit.
        TsMpsError: A worker failed.
    """
    with Team(job, stage, workers, job.scaling_batch, mps=mps) as team, ExitStack() as stack:
        feeders = [stack.enter_context(_Feeder(job, member, number)) for number, member in enumerate(team.members)]
        for feeder in feeders:
            feeder.hear(team, _READY_SECONDS)
        rates = []
        for repeat in range(job.repeats):
            start = time.monotonic() + _NOTICE
            begin = start + (_NEXT_WARM if repeat else max(_FIRST_WARM, job.seconds / 4))
            end = begin + job.seconds
            for feeder in feeders:
                feeder.tell(team, {"start": start, "begin": begin, "end": end})
            left = end - time.monotonic() + ANSWER_SECONDS + 10
            batches = sum(float(feeder.hear(team, left)["batches"]) for feeder in feeders)
            rates.append(batches * job.scaling_batch / job.seconds)
    return ScaleRun(
        workers=workers,
        mps=mps,
        batch_size=job.scaling_batch,
        requests_per_second=percentile(rates, 50),
        low=min(rates),
        high=max(rates),
    )


class _Feeder:
    """A process of ``ts_mps.profile.feeder`` while the context manager is open."""

    def __init__(self, job: Job, member: Member, offset: int) -> None:
        self._member = member
        self._channel, theirs = Channel.pair()
        descriptors = (theirs.fileno(), member.driven.connection.fileno())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ts_mps.profile.feeder", *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,
            )
        self._job = {
            "files": [str(file.absolute()) for file in job.files],
            "content_type": job.content_type,
            "batch_size": job.scaling_batch,
            "offset": offset,
            "gap": job.gap,
        }

    def __enter__(self) -> _Feeder:
        self._channel.send(self._job)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def tell(self, team: Team, value: dict[str, Any]) -> None:
        """Send; the errors are :meth:`hear`'s."""
        try:
            self._channel.send(value)
        except Disconnected as error:
            raise team.explain(self._member, error) from error

    def hear(self, team: Team, seconds: float) -> dict[str, Any]:
        """Its next word.

        Raises:
            NoMemory: Its worker ran out of memory.
            TsMpsError: Its worker, or the feeder itself, failed.
        """
        try:
            heard = self._channel.receive(seconds)
        except (Disconnected, TimeoutError) as error:
            raise team.explain(self._member, error) from error
        if "error" in heard:
            if heard["memory"]:
                raise NoMemory(heard["error"])
            raise team.explain(self._member, BadAnswer(heard["error"], details=heard["details"]))
        return heard

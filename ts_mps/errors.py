"""The error family: each error is a sentence for the person who meets it, with an exit code of its own.

``docs/reference/exit-codes.md`` is generated from :data:`EXIT_CODES`; the codes are written down nowhere else.
"""

from __future__ import annotations

from typing import ClassVar


class TsMpsError(Exception):
    """What happened and what to do about it.

    Args:
        what: One sentence that says what happened, on which GPU, model, worker, file or port.
        remedy: What the reader can do; often the exact command. May be empty.
        details: Evidence shown below the sentence: a traceback's or a log's last lines.
    """

    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = (
        "TorchServe's own 1: a flag names a missing file or folder, or a server is already running; with --foreground "
        "also java that ended by itself"
    )

    def __init__(self, what: str, remedy: str = "", details: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.details = details

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}".strip()


class UsageError(TsMpsError):
    """A flag, a TS_MPS_* variable or an argument that cannot be used."""

    exit_code = 2
    meaning = "usage: an unknown flag, or a value that a flag or TS_MPS_* variable does not take"


class PreflightError(TsMpsError):
    """A check before the start failed; nothing was started."""

    exit_code = 3
    meaning = "preflight: a check failed before anything was started"


class PlanError(TsMpsError):
    """The workers asked for do not fit, or a plan, a profile or a setting is not for this machine or these models."""

    exit_code = 4
    meaning = (
        "plan impossible: the workers asked for do not fit, or a plan file, a profile or a setting is for another "
        "machine or model"
    )


class MpsError(TsMpsError):
    """MPS could not be started, did not answer, or is not to be had under ``--mps on``."""

    exit_code = 5
    meaning = "MPS: no usable GPU under --mps on, the control program is missing, or a daemon does not answer"


class NotReadyError(TsMpsError):
    """TorchServe, or one of the workers, did not become ready; all that was started has been stopped."""

    exit_code = 6
    meaning = "TorchServe did not become ready; everything that was started has been stopped again"


class NotRunningError(TsMpsError):
    """The instance that the command speaks of is not running, or not as planned."""

    exit_code = 7
    meaning = "not running, or (status) running but not as planned"


#: Exit code -> meaning. 0 and the codes after a signal are not errors of ours, so they stand here by hand.
EXIT_CODES: dict[int, str] = {
    0: "done",
    **{
        error.exit_code: error.meaning
        for error in (
            TsMpsError,
            UsageError,
            PreflightError,
            PlanError,
            MpsError,
            NotReadyError,
            NotRunningError,
        )
    },
    130: "interrupted by SIGINT (Ctrl-C) during a start; everything that was started has been stopped again",
    143: "ended by SIGTERM during a start; everything that was started has been stopped again",
}

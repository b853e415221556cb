"""CUDA errors that a process cannot survive: which they are, and how a worker learns of one whoever caught it.

TorchServe 0.12.0 takes every exception with "CUDA" in its text for a lack of memory (507) and serves on, on a context
on which nothing works any more (``ts/service.py``). So a worker has to tell the two apart before TorchServe does.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from ts.context import RequestProcessor

#: What the process cannot survive, by its number in cudaError_t, in the words of cudaGetErrorString (CUDA 13.0).
#: ``driver_types.h`` says of 226, 700 to 721, 810 and 911 "the process must be terminated and relaunched". 214 and 220
#: are damage to what is on the GPU. 46 and 805 to 809 keep the process from having a context, or are the end of the one
#: that it had (806 is what a client gets when the MPS server is killed), and a new process gets one or says why not.
FATAL = {
    46: "CUDA-capable device(s) is/are busy or unavailable",
    214: "uncorrectable ECC error encountered",
    220: "uncorrectable NVLink error detected during the execution",
    226: "Invalid access of peer GPU memory over nvlink or a hardware error",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    721: "tensor memory not completely freed",
    805: "MPS client failed to connect to the MPS control daemon or the MPS server",
    806: "the remote procedural call between the MPS server and the MPS client failed",
    807: "MPS server is not ready to accept new MPS client requests",
    808: "the hardware resources required to create MPS client have been exhausted",
    809: "the hardware resources required to support device connections have been exhausted",
    810: "the MPS client has been terminated by the server",
    911: "an async error has occured in external entity outside of CUDA",
}

#: cudaErrorMemoryAllocation, and the errors 900 to 908 of a stream that is being captured: the context is well.
_HARMLESS = frozenset({2, *range(900, 909)})
_HARMLESS_TEXTS = ("out of memory", "capture", "capturing")

#: Classes whose objects only CUDA's callers make, so that their text is CUDA's and not a client's. By name, as
#: torch.AcceleratorError is there since torch 2.8 only.
_CUDAS_OWN = frozenset({"AcceleratorError", "CudaError"})

#: Errors that led to one another; a chain that is longer has become a loop.
_LONGEST_CHAIN = 20

#: Seconds that a context has to say whether it is well. A call on a dead one can hang with the interpreter's lock held.
_ASK_SECONDS = 20.0

_report_status = RequestProcessor.report_status


@dataclass(frozen=True)
class Fault:
    """Why this process cannot use its GPU any more.

    Attributes:
        code: Number in cudaError_t; None where it is not known.
        text: CUDA's words for it, one line.
    """

    code: int | None
    text: str

    @property
    def cause(self) -> str:
        """As events name it."""
        return "cuda-error" if self.code is None else f"cuda-error-{self.code}"

    def __str__(self) -> str:
        return self.text if self.code is None else f"CUDA error {self.code}: {self.text}"


def read_text(text: str) -> Fault | None:
    """The fault whose words are in a text of CUDA's or of a library over it; None if there is none."""
    return next((Fault(code, words) for code, words in FATAL.items() if words in text), None)


def read_error(error: BaseException) -> Fault | None:
    """The fault that an error names, by torch's number where it has one, else by its words."""
    code = getattr(error, "error_code", None)
    if isinstance(code, int) and code in FATAL:
        return Fault(code, FATAL[code])
    return read_text(str(error))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it, newest first: handlers wrap what they catch."""
    for _ in range(_LONGEST_CHAIN):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def ask_context() -> Fault | None:
    """Ask CUDA whether this process's context still works; None if it does, or if there is none.

    It waits for what runs on the GPU. If CUDA does not come back, the process is ended from a thread that needs no
    interpreter, and TorchServe answers the batch with its own 500.
    """
    if not torch.cuda.is_initialized():
        return None
    faulthandler.dump_traceback_later(_ASK_SECONDS, exit=True)
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return None if _harmless(error) else read_error(error) or Fault(None, _first_line(error))
    finally:
        faulthandler.cancel_dump_traceback_later()
    return None


def _harmless(error: BaseException) -> bool:
    code = getattr(error, "error_code", None)
    return code in _HARMLESS or any(words in str(error) for words in _HARMLESS_TEXTS)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].removeprefix("CUDA error: ")[:200]


class Watch:
    """Notes what a batch did that its exception or its answers need not show.

    Once :meth:`begin` has been called, every torch.AcceleratorError is seen when it is made, whether or not a handler
    catches it, and so is every status of 500 and above that a handler gives a request. A good batch makes neither, so
    for it there is one attribute to read and nothing else.

    Attributes:
        alarmed: Whether there is something to look at.
    """

    def __init__(self) -> None:
        self.alarmed = False
        self._texts: list[str] = []
        self._lost: Fault | None = None

    def begin(self) -> None:
        """Take note from now on, in place of any other watch of this process."""

        def status(processor: object, code: int, reason_phrase: str | None = None) -> None:
            if code >= 500:
                self.alarmed = True
            _report_status(processor, code, reason_phrase)

        def made(error: BaseException, *words: object) -> None:
            RuntimeError.__init__(error, *words)
            # Its text only: the error would keep the frames that it went through, and their tensors, alive.
            self._texts.append(str(error))
            self.alarmed = True

        RequestProcessor.report_status = status
        if hasattr(torch, "AcceleratorError"):
            torch.AcceleratorError.__init__ = made

    def device_lost(self, error: BaseException) -> None:
        """Told by a handler that has found out by itself that its device is lost."""
        self._lost = _named(chain(error)) or Fault(None, _first_line(error))
        self.alarmed = True

    def verdict(self, error: Exception | None) -> Fault | None:
        """Whether the batch that has just ended has lost the GPU. What was noted is forgotten.

        An error of a class of CUDA's own is believed. Anything else may carry a client's words in its text, or no words
        at all, so CUDA itself is asked.

        Args:
            error: What the handler raised; None if it answered.
        """
        texts, lost = self._texts, self._lost
        self.forget()
        if lost is not None:
            return lost
        for text in texts:
            if (fault := read_text(text)) is not None:
                return fault
        return _named(one for one in chain(error) if _cudas_own(one)) or ask_context()

    def forget(self) -> None:
        """Begin a batch with nothing noted."""
        self.alarmed, self._texts, self._lost = False, [], None


def _named(errors: Iterable[BaseException]) -> Fault | None:
    return next((fault for error in errors if (fault := read_error(error)) is not None), None)


def _cudas_own(error: BaseException) -> bool:
    return any(kind.__name__ in _CUDAS_OWN for kind in type(error).__mro__)

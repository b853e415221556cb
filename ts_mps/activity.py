"""What a worker is at, and what its guardian wants of it: a page that both share. The worker needs no system call."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

#: What stands for the number of a batch where a worker's page may not be read: nobody knows whether it is inside one.
#: /proc shows a process's descriptors only to who may trace it (ptrace(2), PTRACE_MODE_READ_FSCREDS): not where it has
#: made itself undumpable, or has more capabilities than who asks.
UNKNOWN = -1
_NAME = "ts-mps-activity"
#: What /proc calls a descriptor of such memory.
_SHOWN = f"/memfd:{_NAME} (deleted)"
#: Memory that can never be run, which is all that there is under vm.memfd_noexec=2. From Linux 6.3 on; Python 3.11 does
#: not name it (include/uapi/linux/memfd.h).
_NOEXEC_SEAL = 0x8


class Attention(IntEnum):
    """How a worker shall look at the batches that it is given; the guardian writes it."""

    #: Serve them all.
    NONE = 0
    #: Look whether one is a word of the guardian (:mod:`ts_mps.torchserve.word`), and serve the others.
    LISTEN = 1
    #: The same, and answer the others at once: the instance is being stopped, and they came too late.
    REFUSE = 2


class Activity:
    """Two counters in a shared page, batches taken and batches answered; then what the guardian wants.

    A stop reads the counters to see who is busy: a busy MPS client must not be killed outright.

    The page is memory that belongs to no file system (memfd_create(2)), and its path a link to the worker's open
    descriptor. In a file of a disk, the kernel write-protects the page whenever it writes it back, and the worker's
    next store, which is on a request's path, waits for the disk. In /dev/shm, logind removes it when the user logs out
    (RemoveIPC, logind.conf(5)). This one goes with the worker.

    Args:
        descriptor: The memory. It stays open as long as the process lives.
    """

    _FORMAT = struct.Struct("=QQ")
    #: Attention, and the secret that a word must know: anybody may send requests, only the guardian writes here.
    _ASKED = struct.Struct("=BQ")
    _ATTENTION = _FORMAT.size
    _PARKED = _ATTENTION + _ASKED.size
    _SIZE = _PARKED + 1

    def __init__(self, descriptor: int) -> None:
        self._page = mmap.mmap(descriptor, self._SIZE)
        self._taken = self._answered = 0

    @classmethod
    def create(cls, path: Path) -> Activity:
        """A page with everything at zero, for this process.

        Args:
            path: Where others find it; whatever is there is replaced.

        Raises:
            OSError: The link cannot be made.
        """
        descriptor = _memory()
        os.ftruncate(descriptor, cls._SIZE)
        path.unlink(missing_ok=True)
        path.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        return cls(descriptor)

    def begin(self) -> None:
        """A batch has been taken."""
        self._taken += 1
        self._FORMAT.pack_into(self._page, 0, self._taken, self._answered)

    def end(self) -> None:
        """The batch's answer has been made."""
        self._answered = self._taken
        self._FORMAT.pack_into(self._page, 0, self._taken, self._answered)

    @property
    def attention(self) -> int:
        """One of :class:`Attention`."""
        return self._page[self._ATTENTION]

    @property
    def secret(self) -> int:
        """What the guardian last wrote beside :attr:`attention`."""
        return int(self._ASKED.unpack_from(self._page, self._ATTENTION)[1])

    def park(self, parked: bool) -> None:
        """Whether the worker waits with a word of the guardian in its hands, so that TorchServe gives it no batch."""
        self._page[self._PARKED] = int(parked)

    @classmethod
    def ask(cls, path: Path, attention: Attention, secret: int = 0) -> None:
        """Ask the worker that writes this page for its attention.

        Args:
            path: The page.
            attention: What is asked.
            secret: Of 64 bits; what a word must say to be one.

        Raises:
            OSError: There is no such page: nobody has ever been there, or it is gone.
        """
        descriptor = cls._open(path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, cls._ASKED.pack(attention, secret), cls._ATTENTION)
        finally:
            os.close(descriptor)

    @classmethod
    def is_parked(cls, path: Path) -> bool:
        """Whether the worker that writes this page is parked; False where there is no page."""
        with suppress(OSError):
            return bool(cls._read(path)[cls._PARKED])
        return False

    @classmethod
    def batch(cls, path: Path) -> int | None:
        """The number of the batch that the worker that writes this page is inside; None between batches, or where
        there is no page; :data:`UNKNOWN` where it may not be read."""
        try:
            taken, answered = cls._FORMAT.unpack_from(cls._read(path))
        except PermissionError:
            return UNKNOWN
        except OSError:
            return None
        return int(taken) if taken != answered else None

    @classmethod
    def taken(cls, path: Path) -> int:
        """How many batches the worker that writes this page has taken; 0 where none can be read."""
        with suppress(OSError):
            return int(cls._FORMAT.unpack_from(cls._read(path))[0])
        return 0

    @classmethod
    def is_busy(cls, path: Path) -> bool:
        """Whether the worker that writes this page is inside a batch; True where nobody knows, False without a page."""
        return cls.batch(path) is not None

    @classmethod
    def _read(cls, path: Path) -> bytes:
        """The page.

        Raises:
            PermissionError: It may not be read.
            OSError: There is none, or its worker is gone.
        """
        descriptor = cls._open(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, cls._SIZE, 0)
        finally:
            os.close(descriptor)

    @classmethod
    def _open(cls, path: Path, flags: int) -> int:
        """Open a page, and nothing else: the link's pid may be another process's by now, whose descriptor is anything.

        Raises:
            PermissionError: It may not be opened.
            OSError: There is no page.
        """
        # Looked at first: to open a device, a watchdog for one, may do something by itself.
        if str(path.readlink().readlink()) != _SHOWN:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink or found.st_size != cls._SIZE:
            os.close(descriptor)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return descriptor


def _memory() -> int:
    """Memory of no file system.

    Raises:
        OSError: There is none to be had.
    """
    try:
        return os.memfd_create(_NAME, os.MFD_CLOEXEC | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.memfd_create(_NAME)  # by a kernel that does not know the flag

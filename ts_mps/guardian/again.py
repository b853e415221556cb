"""The command that an instance was started with, read from its guardian while it lives, and run once more."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from ts_mps.errors import NotRunningError, UsageError
from ts_mps.guardian.state import guardian_lives, load_state
from ts_mps.paths import InstancePaths


@dataclass(frozen=True)
class Command:
    """A command with all that it depends on.

    Attributes:
        words: It and its arguments.
        folder: Its working folder.
        environ: Its environment. Not in the repr: it may hold passwords.
    """

    words: tuple[str, ...]
    folder: Path
    environ: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Command({' '.join(self.words)})"


def command_of(paths: InstancePaths) -> Command:
    """The command of an instance's start. Its guardian is that command, or a fork of it.

    Raises:
        NotRunningError: It does not run, or its guardian is gone and with it what it was started with.
        UsageError: The guardian is somebody else's child, who has to start it again.
    """
    state = load_state(paths)
    if state is None or state.guardian is None or not guardian_lives(paths):
        raise NotRunningError(
            f"Nobody guards instance {paths.name}, so it is not known how it was started.",
            f"If it still serves: ts-mps stop --name {paths.name}, then start it.",
        )
    try:
        process = psutil.Process(state.guardian.pid)
        words, folder, environ = tuple(process.cmdline()), Path(process.cwd()), process.environ()
        # One in the background writes its own log (``background.start``); one in front writes where it was told to.
        # That file may have been renamed since, as logrotate does: guardian.log.1, perhaps " (deleted)".
        output, log = Path(f"/proc/{process.pid}/fd/1").readlink(), paths.guardian_log.resolve()
        in_background = output.parent == log.parent and output.name.startswith(log.name)
    except (psutil.Error, OSError) as error:
        raise NotRunningError(f"The guardian of instance {paths.name} cannot be looked at: {error}.") from error
    if "start" not in words:
        raise UsageError(
            f"Instance {paths.name} was not started by ts-mps start but by: {' '.join(words[:4])}.",
            "Let that start it again.",
        )
    if not in_background:
        raise UsageError(
            f"Instance {paths.name} runs in front (--foreground), under whoever started it: systemd, a container, a "
            "terminal.",
            "Restart it there, which drains it as well (systemctl restart, docker restart); or use --rolling.",
        )
    return Command(words, folder, environ)


def start_again(command: Command) -> int:
    """Run it; what it says on stderr is seen, its result is not.

    Returns:
        Its exit code.
    """
    done = subprocess.run(
        command.words, cwd=command.folder, env=dict(command.environ), stdout=subprocess.DEVNULL, check=False
    )
    return done.returncode

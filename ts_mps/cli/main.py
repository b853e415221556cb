"""``ts-mps VERB ...``: finds the verb, and turns an error into its sentence and its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from ts_mps import __version__
from ts_mps.cli.render import print_error
from ts_mps.errors import TsMpsError, UsageError

#: Verb -> one line of help. The module ts_mps.cli.<verb> has ``main(arguments) -> exit code`` and ``parser()``.
VERBS = {
    "start": "start TorchServe with every worker a proven MPS client (in place of `torchserve`)",
    "plan": "how many workers each model gets, on which GPU, with what share, and why; starts nothing",
    "stop": "stop it: drain, then TorchServe, then the MPS daemons",
    "restart": "stop it and start it again with the same command; --rolling: worker by worker, TorchServe stays",
    "scale": "more or fewer workers of one model, as the plan allows",
    "reload": "put in force what plan file or settings say now",
    "status": "what runs, on which GPU, and whether it is as planned",
    "events": "what happened: faults, recoveries, restarts, one line each",
    "doctor": "check this machine and configuration, with a remedy for each finding",
    "profile": "measure one model for the planner: memory, times, and what several workers reach",
    "bench": "measure whether MPS pays for a model on this machine, and report it",
    "demo": "train, archive, serve and query a small model on real images",
}


def usage() -> str:
    """The text of ``ts-mps --help``."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(
        ["usage: ts-mps VERB [options]", "", *lines, "", "`ts-mps VERB --help` lists the options of a verb."]
    )


def main(arguments: Sequence[str]) -> int:
    """Run one verb; its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else UsageError.exit_code
    verb, *rest = arguments
    if verb in ("-v", "--version"):
        print(f"ts-mps {__version__}")
        return 0
    try:
        if verb not in VERBS:
            raise UsageError(f"'{verb}' is not a verb of ts-mps.", f"Verbs: {', '.join(VERBS)}.")
        verb_main: Callable[[Sequence[str]], int] = import_module(f"ts_mps.cli.{verb}").main
        return verb_main(rest)
    except TsMpsError as error:
        print_error(error, as_json="--json" in rest)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output (head, less) has enough; stdout must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        failure = TsMpsError(f"{error.filename or 'A file'}: {error.strerror or error}.", "Check the file system.")
        print_error(failure, as_json="--json" in rest)
        return failure.exit_code


def run() -> None:
    """Console script."""
    sys.exit(main(sys.argv[1:]))

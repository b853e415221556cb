"""``ts-mps doctor``: what stands in the way of a start with the same flags, and what to do about it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape

from ts_mps.cli import probe_cap
from ts_mps.cli.render import print_json, show
from ts_mps.doctor.examine import examine
from ts_mps.errors import PreflightError, UsageError
from ts_mps.guardian.instance import RESULT_VERSION
from ts_mps.torchserve.arguments import help_parser, parse

_MARKS = {"ok": "[green]OK     [/]", "warning": "[yellow]warning[/]", "error": "[bold red]error  [/]"}


def parser() -> argparse.ArgumentParser:
    """The options of ``ts-mps start``: the doctor examines that very start."""
    options = help_parser()
    options.prog = "ts-mps doctor"
    options.description = (
        "Check this machine, and a start with these same options, without starting or changing anything. "
        "Exit code 0: no errors; 3: a start would fail."
    )
    probe_cap.add_options(options)
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    if probe_cap.FLAG in arguments and not {"-h", "--help"} & set(arguments):
        return probe_cap.main(arguments)
    if any(word.partition("=")[0] == "--gpu" for word in arguments):
        raise UsageError("--gpu names the GPU whose client cap is measured.", f"Add {probe_cap.FLAG}, or leave it out.")
    parsed = parse(arguments, os.environ, "ts-mps doctor")
    if parsed.help:
        parser().print_help()
        return 0
    findings = examine(parsed, os.environ, Path.cwd())
    errors = [finding for finding in findings if finding.level == "error"]
    if parsed.json:
        print_json({"version": RESULT_VERSION, "ok": not errors, "findings": [asdict(f) for f in findings]})
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            show(f"{_MARKS[finding.level]} {escape(finding.check):<{width}}  {escape(finding.what)}")
            if finding.remedy:
                show(f"{'':7} {'':<{width}}  [dim]-> {escape(finding.remedy)}[/]")
        warnings = sum(1 for finding in findings if finding.level == "warning")
        verdict = "correct the errors before a start" if errors else "no check failed"
        show("", f"{len(findings)} findings: {len(errors)} error(s), {warnings} warning(s); {verdict}.")
    return PreflightError.exit_code if errors else 0

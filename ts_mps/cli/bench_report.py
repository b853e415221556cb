"""``ts-mps bench report`` and ``ts-mps bench diff``: what studies say, and where two of them differ."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ts_mps.bench.records import Study
from ts_mps.cli.bench_text import chapter_text
from ts_mps.cli.options import VerbParser
from ts_mps.cli.output import file_option
from ts_mps.cli.render import note, print_json, show
from ts_mps.errors import PreflightError, UsageError

#: Version of what ``--json`` prints.
REPORT_VERSION = 1
#: Packages of the extra "bench"; who only serves does not have them.
_EXTRA = frozenset({"locust", "gevent", "scipy", "jinja2", "markupsafe", "matplotlib"})


@contextmanager
def needs_extra() -> Iterator[None]:
    """Turn a missing package of the extra "bench" into a sentence with the command that installs it.

    Raises:
        PreflightError: One is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise PreflightError(
            f"`ts-mps bench` needs the package {error.name}, which is not installed.",
            "Run: pip install 'ts-mps[bench]'",
        ) from error


def report_parser() -> argparse.ArgumentParser:
    """The options of ``ts-mps bench report``."""
    options = VerbParser(
        prog="ts-mps bench report",
        description="Show what studies of `ts-mps bench compare` say: on the terminal, and with -o as a page, charts "
        "(PNG), CSV and Markdown. Studies are only read.",
    )
    options.add_argument("results", metavar="RESULT", nargs="+", type=Path, help="files that `compare` wrote")
    options.add_argument(
        "-o", "--output", metavar="DIR", type=file_option, help="folder for the report; made if missing"
    )
    _add_margin(options)
    options.add_argument(
        "--slo-ms",
        metavar="MS",
        type=_above_zero,
        help="goodput is what was answered within so many milliseconds",
    )
    options.add_argument(
        "--price",
        metavar="NAME=PER_HOUR",
        action="extend",
        type=_price_list,
        default=[],
        help="what the machine costs per hour, by the name of an arm or by device: gpu=10.5,cpu=2; may be repeated",
    )
    options.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    return options


def diff_parser() -> argparse.ArgumentParser:
    """The options of ``ts-mps bench diff``."""
    options = VerbParser(
        prog="ts-mps bench diff",
        description="Compare the arms that two studies have in common. The exit code is 0 whatever is found, also "
        "where the second is worse; it is another one only if a file cannot be used.",
    )
    options.add_argument("before", metavar="A", type=Path, help="the study that is compared with")
    options.add_argument("after", metavar="B", type=Path, help="the study that is judged")
    _add_margin(options)
    options.add_argument("--markdown", action="store_true", help="print Markdown, for a pull request")
    options.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    return options


def _add_margin(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--margin",
        metavar="PERCENT",
        type=_margin,
        default=0.03,
        help="differences up to this are too small to matter (default: 3)",
    )


def report(arguments: Sequence[str]) -> int:
    """Run ``ts-mps bench report``.

    Returns:
        0, whatever the studies say.

    Raises:
        PreflightError: A file is no study, the report cannot be written, or a package is missing.
        UsageError: A price is for nothing that the studies have.
    """
    options = report_parser().parse_args(arguments)
    with needs_extra():
        from ts_mps.bench.report.reading import read_study
        from ts_mps.bench.report.writing import Source, chapters, write_report
        from ts_mps.bench.summary import summarise
    studies = [(path, read_study(path)) for path in options.results]
    prices = _prices(options.price, [study for _, study in studies])
    sources = []
    for path, study in studies:
        own = {name: price for name, price in prices.items() if name in _priced(study)}
        summary = summarise(study, margin=options.margin, objective_ms=options.slo_ms, prices=own)
        sources.append(Source(path, study, summary))
    files = write_report(sources, options.output) if options.output else ()
    if options.json:
        print_json(
            {
                "version": REPORT_VERSION,
                "studies": [
                    {"file": str(one.path), "title": one.study.title, **finite(asdict(one.summary))} for one in sources
                ],
                "files": [str(path) for path in files],
            }
        )
    else:
        show(*(chapter_text(chapter) for chapter in chapters(sources)))
    if files:
        note(f"The report is in {files[0]}, with {len(files) - 1} files beside it.")
    return 0


def diff(arguments: Sequence[str]) -> int:
    """Run ``ts-mps bench diff``.

    Returns:
        0, whatever is found.

    Raises:
        PreflightError: A file is no study, or a package is missing.
    """
    options = diff_parser().parse_args(arguments)
    with needs_extra():
        from ts_mps.bench.difference import difference
        from ts_mps.bench.report.changes import change_chapter
        from ts_mps.bench.report.markdown import markdown
        from ts_mps.bench.report.reading import read_study
    found = difference(read_study(options.before), read_study(options.after), margin=options.margin)
    if options.json:
        print_json({"version": REPORT_VERSION, **finite(asdict(found))})
        return 0
    chapter = change_chapter(found, options.before.name, options.after.name)
    if options.markdown:
        print(markdown([chapter], pictures=False), end="")
    else:
        show(chapter_text(chapter))
    return 0


def finite(value: Any) -> Any:
    """A value for JSON, which has no sign for what is no number: None in its place."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _prices(given: Sequence[tuple[str, float]], studies: Sequence[Study]) -> dict[str, float]:
    known = sorted(set().union(*map(_priced, studies)))
    for name, _ in given:
        if name not in known:
            raise UsageError(
                f"--price {name}=...: no study has a device or a measured arm of this name.",
                f"There are: {'; '.join(known)}.",
            )
    return dict(given)


def _priced(study: Study) -> set[str]:
    """What a price may be for."""
    return {"gpu", "cpu", *(run.arm for run in study.runs)}


def _price_list(text: str) -> list[tuple[str, float]]:
    """Prices with commas between them; an arm's name may hold commas, so only one before a device divides."""
    return [_price(part) for part in re.split(",(?=(?:gpu|cpu)=)", text)]


def _price(text: str) -> tuple[str, float]:
    name, equals, price = text.rpartition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=PRICE, such as gpu=10.5")
    return name, _above_zero(price)


def _margin(text: str) -> float:
    percent = _above_zero(text)
    if percent > 50:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and up to 50")
    return percent / 100


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")
    return number

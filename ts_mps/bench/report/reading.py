"""Studies read from files that anybody may have touched: every refusal is a sentence."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from ts_mps.bench.histogram import LAST
from ts_mps.bench.records import Study
from ts_mps.errors import PreflightError

_REMEDY = "Give the file that `ts-mps bench compare -o FILE` wrote."
#: What neither XML nor a terminal takes: control characters, and halves of a surrogate pair.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+")
#: These may span lines: they are shown as they are.
_KEEPS_LINES = frozenset({"details"})


def read_study(path: Path) -> Study:
    """The study in a file.

    Control characters in its texts become spaces, so that no name can break a chart or a terminal.

    Raises:
        PreflightError: The file cannot be read, is not JSON, is of another version, or holds what no study holds.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number, parse_float=_finite)
    except OSError as error:
        raise PreflightError(f"{path} cannot be read: {error.strerror or error}.", _REMEDY) from error
    except RecursionError as error:
        raise _refusal(path, "it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise _refusal(path, "it is not JSON, it is not even text") from error
    except json.JSONDecodeError as error:
        raise _refusal(path, f"it is not JSON: {error}") from error
    except ValueError as error:
        raise _refusal(path, str(error)) from error
    if not isinstance(value, dict):
        raise _refusal(path, "it holds no JSON object")
    value = _clean(value)
    try:
        Study.from_json(value)  # says it if the version is another one
        study = TypeAdapter(Study).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _refusal(path, f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _refusal(path, str(error)) from error
    if problem := _contradiction(study):
        raise _refusal(path, problem)
    return study


def _contradiction(study: Study) -> str:
    """What the types alone do not rule out and would end in a wrong figure or a division by zero."""
    names = [arm.name for arm in study.arms]
    for name in names:
        if names.count(name) > 1:
            return f"it has two arms of the name '{name}'"
    objective = study.settings.get("slo_ms")
    if objective is not None and not (isinstance(objective, int | float) and objective > 0):
        return f"its setting slo_ms is {objective!r}"
    closed = {run.result.load.connections for run in study.runs if run.result and run.result.load.kind == "closed"}
    if len(closed) > 1:
        return f"its closed loops had {' and '.join(map(str, sorted(closed)))} connections, and are not to be compared"
    for place, run in enumerate(study.runs):
        if run.arm not in names:
            return f"run {place} is of the arm '{run.arm}', which the study does not have"
        if run.result is None:
            continue
        if not run.result.load.seconds > 0:
            return f"run {place} lasted {run.result.load.seconds:g} seconds"
        if min(run.result.sent, run.result.answered, *(count for _, count in run.result.histogram.counts)) < 0:
            return f"run {place} counts fewer than no requests"
        if any(not 0 <= bucket <= LAST for bucket, _ in run.result.histogram.counts):
            return f"run {place} counts latencies in a bucket that there is not"
    return ""


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text}, which is too large for a number")
    return number


def _clean(value: Any, name: str = "") -> Any:
    if isinstance(value, str):
        return (
            "\n".join(_UNPRINTABLE.sub(" ", line) for line in value.split("\n"))
            if name in _KEEPS_LINES
            else (_UNPRINTABLE.sub(" ", value))
        )
    if isinstance(value, dict):
        return {_clean(key): _clean(inner, key) for key, inner in value.items()}
    return [_clean(inner) for inner in value] if isinstance(value, list) else value


def _refusal(path: Path, why: str) -> PreflightError:
    return PreflightError(f"{path} is not a study that can be shown: {why}.", _REMEDY)

from __future__ import annotations

import argparse
import dataclasses

import pytest
from ts.arg_parser import ArgParser

from ts_mps.errors import UsageError
from ts_mps.torchserve.arguments import StartArguments, help_parser, parse
from ts_mps.torchserve.options import OPTIONS

THEIRS = ArgParser.ts_parser()._option_string_actions
WHOLE = [flag for flag, action in THEIRS.items() if flag.startswith("--") and action.dest != "help"]


def _abbreviations() -> list[str]:
    """Every beginning of a flag of TorchServe's that its parser takes for that flag."""
    beginnings = [flag[:end] for flag in WHOLE for end in range(3, len(flag))]
    return sorted(word for word in beginnings if sum(other.startswith(word) for other in THEIRS) == 1)


@pytest.mark.parametrize("flag", [*WHOLE, *_abbreviations(), "-v"])
def test_torchserve_flag_means_what_it_means_there(flag):
    action = next(THEIRS[name] for name in THEIRS if name.startswith(flag))
    argv = [flag] if action.nargs == 0 else [flag, "value"]
    theirs = vars(ArgParser.ts_parser().parse_args(argv))
    theirs["disable_token_auth"] = theirs.pop("token_auth")
    theirs["enable_model_api"] = theirs.pop("model_mode")
    theirs["models"] = tuple(theirs["models"] or ())
    ours = dataclasses.asdict(parse(argv, {}))
    assert {key: ours[key] for key in theirs} == theirs
    assert ours[{"token_auth": "disable_token_auth", "model_mode": "enable_model_api"}.get(action.dest, action.dest)]


def test_no_option_of_ours_takes_a_word_from_torchserve():
    words = {word for option in OPTIONS for word in (option.flag, option.flag.replace("--", "--no-"))}
    assert not [flag for flag in WHOLE for word in words if flag.startswith(word)]


def test_defaults():
    assert parse([], {}) == StartArguments()


def test_both_groups_mixed():
    args = parse(
        ["--workers", "2", "digits=4", "--models", "a.mar", "b=b.mar", "--mps", "on", "--workers", "x=y=1", "--ncs"], {}
    )
    assert args.workers == ("2", "digits=4", "x=y=1")
    assert args.models == ("a.mar", "b=b.mar")
    assert args.mps == "on"
    assert args.no_config_snapshots


VALUES = {
    "--mps": ("off", "off"),
    "--workers": ("3,a=4 b=5", ("3", "a=4", "b=5")),
    "--plan": ("auto", "auto"),
    "--reserve": ("0", 0),
    "--settings": ("/etc/ts-mps.toml", "/etc/ts-mps.toml"),
    "--cpu-affinity": ("cores", "cores"),
    "--exclusive": ("yes", True),
    "--wait-timeout": ("12.5", 12.5),
    "--drain-timeout": ("0", 0.0),
    "--health-address": ("127.0.0.1:8083", ("127.0.0.1", 8083)),
    "--name": ("second", "second"),
    "--runtime-dir": ("/run/x", "/run/x"),
    "--json": ("1", True),
}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_every_option_has_a_variable(option):
    text, value = VALUES[option.flag]
    assert getattr(parse([], {option.environment_variable: text}), option.field) == value
    assert option.environment_variable.startswith("TS_MPS_")


def test_flag_beats_variable():
    environ = {"TS_MPS_MPS": "on", "TS_MPS_WORKERS": "7", "TS_MPS_EXCLUSIVE": "true", "TS_MPS_HOME": "/a"}
    args = parse(["--mps", "off", "--workers", "1", "--no-exclusive", "--runtime-dir", "/b"], environ)
    assert (args.mps, args.workers, args.exclusive, args.runtime_dir) == ("off", ("1",), False, "/b")


def test_empty_variable_counts_as_not_set():
    assert parse([], {option.environment_variable: "" for option in OPTIONS}) == StartArguments()


@pytest.mark.parametrize(
    ("argv", "environ", "named"),
    [
        (["--mps", "maybe"], {}, "--mps"),
        (["--mp", "on"], {}, "--mp"),
        (["--workers", "0"], {}, "--workers"),
        (["--workers", "a=-1"], {}, "--workers"),
        (["--workers", "=2"], {}, "--workers"),
        (["--workers"], {}, "--workers"),
        (["--wait-timeout", "nan"], {}, "--wait-timeout"),
        (["--wait-timeout", "0"], {}, "--wait-timeout"),
        (["--drain-timeout", "-1"], {}, "--drain-timeout"),
        (["--drain-timeout", "soon"], {}, "--drain-timeout"),
        (["--name", ""], {}, "--name"),
        (["--reserve", "-1"], {}, "--reserve"),
        (["--reserve", "1.5"], {}, "--reserve"),
        (["--reserve", "9" * 7], {}, "--reserve"),
        (["--plan", ""], {}, "--plan"),
        (["--settings"], {}, "--settings"),
        ([], {"TS_MPS_RESERVE": "one"}, "TS_MPS_RESERVE"),
        (["--unknown"], {}, "--unknown"),
        (["stray"], {}, "stray"),
        (["--model", "x"], {}, "--model"),
        (["--start", "--stop"], {}, "--stop"),
        (["--ts-config"], {}, "--ts-config"),
        ([], {"TS_MPS_MPS": "maybe"}, "TS_MPS_MPS"),
        ([], {"TS_MPS_WORKERS": "a,"}, "TS_MPS_WORKERS"),
        ([], {"TS_MPS_EXCLUSIVE": "perhaps"}, "TS_MPS_EXCLUSIVE"),
        ([], {"TS_MPS_WAIT_TIMEOUT": "inf"}, "TS_MPS_WAIT_TIMEOUT"),
    ],
)
def test_what_cannot_be_used_is_named(argv, environ, named, capsys):
    with pytest.raises(UsageError) as caught:
        parse(argv, environ)
    assert named in caught.value.what
    assert caught.value.exit_code == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("word", ["-h", "--help", "--he"])
def test_help_is_reported_not_printed(word, capsys):
    assert parse(["--mps", "on", word], {}).help
    assert capsys.readouterr() == ("", "")


def test_help_shows_every_flag_and_variable():
    parser = help_parser()
    assert isinstance(parser, argparse.ArgumentParser)
    text = parser.format_help()
    for word in [*WHOLE, *(option.flag for option in OPTIONS), *(option.environment_variable for option in OPTIONS)]:
        assert word in text

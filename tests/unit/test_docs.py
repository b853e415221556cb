"""What the documentation names exists."""

import re
from pathlib import Path

import pytest

from ts_mps.cli.main import VERBS
from ts_mps.cli.reference import commands, exit_codes
from ts_mps.torchserve import properties
from ts_mps.torchserve.arguments import help_parser

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_verbs_and_options_exist(page):
    known = {name for action in help_parser()._actions for name in action.option_strings} | {"--keep", "--watch"}
    for line in page.read_text().splitlines():
        for verb, rest in re.findall(r"ts-mps ([a-z]+)\b([^`#]*)", line):
            if verb in VERBS:
                assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"{page.name}: {line}"
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for command in re.findall(r"^ts-mps (\S+)", block, re.MULTILINE):
            assert command in VERBS, f"{page.name}: ts-mps {command}"


def test_the_generated_reference_is_fresh():
    """If this fails: python -m ts_mps.cli.reference docs/reference"""
    assert (ROOT / "docs/reference/cli.md").read_text() == commands()
    assert (ROOT / "docs/reference/exit-codes.md").read_text() == exit_codes()


def test_the_example_configuration_can_be_read():
    assert "inference_address" in properties.read(ROOT / "config/config.properties").values

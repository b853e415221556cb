"""What the documentation names exists."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from handling import Served, module_of

from ts_mps.cli.main import VERBS
from ts_mps.cli.reference import commands, exit_codes, parsers
from ts_mps.torchserve import properties

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_verbs_and_options_exist(page):
    known = {name for _, parser in parsers() for action in parser._actions for name in action.option_strings}
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


def test_the_example_handler_is_short_and_serves(tmp_path, monkeypatch):
    """The blocks of docs/how-to/write-a-handler.md, as pasted; its answers do not depend on the batch."""
    import torch

    page = (ROOT / "docs/how-to/write-a-handler.md").read_text()
    model, handler = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (config,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (rejected,) = re.findall(r'^(\{"code".*)$', page, re.MULTILINE)
    assert len(handler.splitlines()) < 40
    (tmp_path / "model.py").write_text(model)
    (tmp_path / "byte_classifier.py").write_text(handler)
    (tmp_path / "byte_classifier.yaml").write_text(config)
    torch.save(module_of(tmp_path / "model.py").ByteModel().state_dict(), tmp_path / "model.pt")
    monkeypatch.setattr("handling.HANDLERS", tmp_path)

    served = Served("byte_classifier", tmp_path)
    both = {"instances": ["good", "a long text of more than thirty-two bytes"]}
    bad = {"instances": ["good", 7]}
    many, refused, one = served.ask((both, "application/json"), (bad, "application/json"), ("good", "text/plain"))
    assert many.json["predictions"][0]["label"] in yaml.safe_load(config)["handler"]["labels"]
    assert many.json["predictions"][0]["score"] == pytest.approx(one.json["score"], abs=1e-6)
    assert (refused.status, refused.body.decode()) == (422, rejected)


def test_the_reference_names_every_option_and_metric():
    from ts_mps.batching import BatchingOptions

    page = (ROOT / "docs/reference/handlers.md").read_text()
    sections = dict(re.findall(r"^##+ `?(?:The section `)?(\w+)`?\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    wanted = {file.stem: yaml.safe_load(file.read_text())["handler"] for file in ROOT.glob("handlers/*.yaml")}
    for section, options in {**wanted, "batching": BatchingOptions.model_fields}.items():
        for option in options:
            assert f"`{option}`" in sections[section], f"{section}: {option}"
    declared = yaml.safe_load((ROOT / "ts_mps/data/metrics.yaml").read_text())["model_metrics"]
    metrics = (ROOT / "docs/reference/metrics.md").read_text()
    for metric in (one["name"] for kind in declared.values() for one in kind if one["name"].startswith("Batch")):
        assert f"| `{metric}` |" in metrics


def table(heading, number=0):
    """The first cells of a section's table in docs/architecture.md."""
    page = (ROOT / "docs/architecture.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = page.split("|---|---|\n")[number + 1].partition("\n\n")[0]
    return [row.split("|")[1] for row in rows.splitlines()]


def imported(file, package):
    """Which parts of a package a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{package}."):
            yield node.module.removeprefix(f"{package}.").partition(".")[0]


@pytest.mark.parametrize(
    ("heading", "package"),
    [("The batching package", "ts_mps.batching"), ("The planner", "ts_mps.plan"), ("Layers", "ts_mps")],
)
def test_imports_go_downwards_as_told(heading, package):
    level = {module: number for number, row in enumerate(table(heading)) for module in re.findall(r"`(\w+)`", row)}
    folder = ROOT / package.replace(".", "/")
    aside = {"__init__", "__main__", "__version__", "batching", "data"} if package == "ts_mps" else {"__init__"}
    for file in folder.glob("**/*.py"):
        own = file.relative_to(folder).parts[0].removesuffix(".py")
        for module in {*imported(file, package)} - aside - {own}:
            assert own in aside or level[own] < level[module], f"{file} imports {module}"
        assert own in {*level, *aside}, f"docs/architecture.md does not name {file}"


def test_the_modules_around_the_planner_exist():
    told = set()
    for group in (group for row in table("The planner", 1) for group in row.split(";")):
        first, *others = (Path(name) for name in re.findall(r"`([\w/]+)`", group))
        told |= {first, *(first.parent / name for name in others)}
    assert {name for name in told if not (ROOT / "ts_mps" / name).with_suffix(".py").exists()} == set()
    profile = {Path("profile", file.stem) for file in (ROOT / "ts_mps/profile").glob("[a-z]*.py")}
    assert profile <= told

"""``ts-mps bench report`` and ``ts-mps bench diff``: what they print, write and refuse."""

import csv
import json
import os
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from benching import arm, result, run, study

from ts_mps.cli.bench_report import finite
from ts_mps.cli.main import main
from ts_mps.files import write_json


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def saved(name, made):
    write_json(Path(name), made.as_json())
    return name


def comparison(**fields):
    pairs = [(arm(1), 1000.0), (arm(4), 2000.0), (arm(4, mps=True), 3000.0), (arm(8, mps=True), 900.0)]
    return study(pairs, **fields)


def ts_mps(capsys, *arguments):
    code = main(["bench", *arguments])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def test_the_terminal_gets_the_verdict_first(capsys):
    code, out, _ = ts_mps(capsys, "report", saved("a.json", comparison()), "--price", "gpu=3.6")
    assert code == 0
    title, headline, *_ = out.splitlines()
    assert title == "Text classifier" and headline.startswith("MPS pays here")
    order = [out.index(text) for text in ("What was compared", "Throughput and latency", "Where MPS loses", "\nCost\n")]
    assert order == sorted(order)
    assert "[green]" not in out and "\x1b" not in out, "no colours outside of a terminal"


def test_prices_may_stand_in_one_list_beside_names_with_commas(capsys):
    name = "4 workers x 8, MPS on"
    code, out, _ = ts_mps(
        capsys, "report", saved("a.json", comparison()), "--price", "gpu=3.6,cpu=1", "--price", f"{name}=2", "--json"
    )
    assert code == 0
    costs = {one["arm"]: one["per_hour"] for one in json.loads(out)["studies"][0]["costs"]}
    assert costs[name] == 2 and set(costs.values()) == {2, 3.6}


def test_the_folder_holds_page_charts_tables_and_markdown(capsys):
    broken = run(arm(4, mps=True), 8, failure="No port is free.")
    path = saved("a.json", comparison(runs=[broken]))
    code, _, err = ts_mps(capsys, "report", path, "-o", "out/deep")
    assert code == 0 and "out/deep/report.html" in err
    names = {file.name for file in Path("out/deep").iterdir()}
    assert {"report.html", "report.md", "runs.csv", "figures.csv", "a-throughput-workers.png"} <= names
    assert all(file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for file in Path("out/deep").glob("*.png"))
    with Path("out/deep/runs.csv").open() as stream:
        runs = list(csv.DictReader(stream))
    assert len(runs) == 33
    assert runs[-1]["why_not"] == "No port is free." and runs[-1]["requests_per_second"] == ""
    with Path("out/deep/figures.csv").open() as stream:
        figures = {row["arm"]: row for row in csv.DictReader(stream)}
    assert float(figures["4 workers x 8, MPS on"]["requests_per_second"]) == pytest.approx(3000, rel=0.03)
    markdown = Path("out/deep/report.md").read_text()
    assert "| 4 workers x 8, MPS on | 4 workers x 8, MPS off | better |" in markdown
    pictures = [line.split("](")[1][:-1] for line in markdown.splitlines() if line.startswith("![")]
    assert pictures and set(pictures) <= names


def test_the_page_says_what_the_study_says(capsys):
    failed = run(arm(4), 9, failure="Worker 7 is no client.", details="W-9003 CUDA error 805")
    made = comparison(runs=[failed], incomplete="It was interrupted.")
    ts_mps(capsys, "report", saved("a.json", made), "-o", "out", "--price", "gpu=3.6", "--slo-ms", "25")
    page = unescape(Path("out/report.html").read_text())
    for text in (
        "MPS pays here",
        "Block 9, 4 workers x 8, MPS off: Worker 7 is no client.",
        "W-9003 CUDA error 805",
        "The study is incomplete: It was interrupted.",
        "580.159.04",
        "Goodput/s",
        "Price per million requests",
        "Orders, arrivals and payloads were drawn from the seed 1.",
        '<th scope="row">1 worker x 8, MPS off</th>',
    ):
        assert text in page, text


def test_the_same_study_gives_the_same_report(capsys):
    path = saved("a.json", comparison())
    for folder in ("one", "two"):
        ts_mps(capsys, "report", path, "-o", folder)
    for file in Path("one").iterdir():
        assert file.read_bytes() == (Path("two") / file.name).read_bytes(), file.name


def test_charts_of_an_earlier_report_go_and_other_pictures_stay(capsys):
    ts_mps(capsys, "report", saved("a.json", comparison()), saved("b.json", comparison()), "-o", "out")
    before = {file.name for file in Path("out").glob("*.png")}
    for name in ("mine.png", "b-throughput-mine.png"):
        (Path("out") / name).write_bytes(b"somebody's")
    ts_mps(capsys, "report", "a.json", "-o", "out")
    after = {file.name for file in Path("out").glob("*.png")}
    assert after == {name for name in before if name.startswith("a-")} | {"mine.png", "b-throughput-mine.png"}
    assert len(before) > len(after) > 2


def test_a_rate_that_the_generator_could_not_make_is_told_as_such(capsys):
    arm_on = arm(4, mps=True)
    void = result(800, 5.0, kind="poisson", rate=800.0, void="The generator fell behind its plan: too late.")
    held = result(400, 5.0, kind="poisson", rate=400.0)
    rates = [run(arm_on, 9, void), run(arm_on, 10, held)]
    code, out, _ = ts_mps(capsys, "report", saved("a.json", comparison(runs=rates)), "--slo-ms", "50", "-o", "out")
    said = " ".join(out.split())
    assert code == 0 and "at 800 requests/s the load generator fell behind its plan" in said
    assert "It holds 400, and may hold more than could be tried." in said
    assert "that the limit may be the generator's" in Path("out/report.md").read_text()


def test_one_json_object_with_a_version(capsys):
    code, out, _ = ts_mps(capsys, "report", saved("a.json", comparison()), "--json", "-o", "out")
    found = json.loads(out)
    assert code == 0 and found["version"] == 1
    (only,) = found["studies"]
    assert only["headline"].startswith("MPS pays here") and only["contrasts"][0]["verdict"] == "better"
    assert "out/report.html" in found["files"]


def test_json_has_no_sign_for_what_is_no_number():
    assert finite({"a": (float("nan"), 1.0), "b": [float("inf")]}) == {"a": [None, 1.0], "b": [None]}


def test_several_studies_of_one_name(capsys):
    Path("old").mkdir()
    paths = [saved("a.json", comparison(title="New")), saved("old/a.json", comparison(title="Old", seed=2))]
    code, out, _ = ts_mps(capsys, "report", *paths, "-o", "out")
    assert code == 0 and "New" in out and "Old" in out
    assert {"a-throughput-workers.png", "a-2-throughput-workers.png"} <= {file.name for file in Path("out").iterdir()}
    with Path("out/runs.csv").open() as stream:
        assert {row["study"] for row in csv.DictReader(stream)} == {"a.json", "old/a.json"}
    assert '<article id="a-2"' in Path("out/report.html").read_text()


@pytest.mark.parametrize(
    "made, text",
    [
        (study([(arm(), 1.0)], blocks=0), "This study has no runs"),
        (study(runs=[run(arm(), failure="No Java.")], arms=(arm(), arm(mps=True))), "No run of this study counts"),
        (study([(arm(), 900.0)]), "no arm on a GPU with MPS on"),
        (study([(arm(), 900.0), (arm(mps=True), 990.0)], blocks=3), "fewer than 6 pairs"),
        (study(runs=[run(arm(), measured=result(0.0))], arms=(arm(),)), "No run of this study counts"),
        (study(runs=[run(arm(), samples=())], arms=(arm(),), machine={}, workload={}, settings={}), "one"),
    ],
    ids=["no runs", "only failed runs", "one arm", "few pairs", "no answers", "nothing known"],
)
def test_studies_that_say_little(capsys, made, text):
    code, _, _ = ts_mps(capsys, "report", saved("a.json", made), "-o", "out")
    assert code == 0
    assert text in unescape(Path("out/report.html").read_text())


def test_no_name_becomes_markup_or_a_formula(capsys):
    name = "=<script>alert(1)</script> | $x_1$ [red]*b*"
    evil = arm(2, name=name, mps=True)
    made = study([(arm(), 900.0), (evil, 1000.0)], title=name, workload={name: {name: [name, {name: name}]}})
    code, out, _ = ts_mps(capsys, "report", saved("a.json", made), "-o", "out")
    assert code == 0 and f"\n{name}  " in out, "a terminal shows it as it is"
    page = Path("out/report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; | $x_1$" in page
    markdown = Path("out/report.md").read_text()
    assert "<script" not in markdown and r"=&lt;script>alert(1)&lt;/script> \| $x\_1$ \[red\]\*b\*" in markdown
    with Path("out/runs.csv").open() as stream:
        assert {row["arm"] for row in csv.DictReader(stream)} == {"1 worker x 8, MPS off", f"'{name}"}


@pytest.mark.parametrize(
    "arguments, text",
    [
        ((), "the following arguments are required: RESULT"),
        (("missing.json",), "missing.json cannot be read: No such file"),
        (("a.json", "--margin", "0"), "'0' is no number above 0"),
        (("a.json", "--margin", "60"), "60 is not above 0 and up to 50"),
        (("a.json", "--slo-ms", "nan"), "'nan' is no number above 0"),
        (("a.json", "--price", "3"), "'3' is not NAME=PRICE"),
        (("a.json", "--price", "tpu=3"), "no study has a device or a measured arm of this name"),
        (("a.json", "-o", "a.json"), "The report cannot be written to a.json"),
        (("a.json", "-o", ""), "it is empty"),
    ],
)
def test_what_is_refused(capsys, arguments, text):
    saved("a.json", comparison(blocks=2))
    code, out, err = ts_mps(capsys, "report", *arguments)
    assert code in (2, 3) and out == ""
    assert text in " ".join(err.split())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_nobody_may_write_into(capsys):
    Path("shut").mkdir(mode=0o500)
    code, _, err = ts_mps(capsys, "report", saved("a.json", comparison(blocks=2)), "-o", "shut")
    assert code == 3 and "Permission denied" in err


def test_a_full_disk(capsys):
    Path("out").mkdir()
    Path("out/report.md").symlink_to("/dev/full")
    code, _, err = ts_mps(capsys, "report", saved("a.json", comparison(blocks=2)), "-o", "out")
    assert code == 3 and "No space left on device" in err


@pytest.mark.parametrize("package", ["matplotlib", "jinja2", "scipy"])
def test_a_missing_package_is_a_sentence(package):
    """In a process of its own, as the package has long been imported here."""
    saved("a.json", comparison(blocks=2))
    script = (
        f"import sys; sys.modules['{package}'] = None; "
        "from ts_mps.cli.main import main; sys.exit(main(['bench', 'report', 'a.json', '-o', 'out']))"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environ)
    assert done.returncode == 3, done.stderr
    assert f"needs the package {package}" in done.stderr and "pip install 'ts-mps[bench]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_diff_names_what_changed_and_exits_with_0(capsys):
    before, after = comparison(), comparison(seed=3)
    slower = study([(arm(1), 1000.0), (arm(4, mps=True), 2400.0)], seed=4, machine={**after.machine, "driver": "999"})
    code, out, _ = ts_mps(capsys, "diff", saved("a.json", before), saved("b.json", slower))
    assert code == 0
    assert any("4 workers x 8, MPS on" in line and "worse" in line for line in out.splitlines())
    assert any("1 worker x 8, MPS off" in line and "no difference" in line for line in out.splitlines())
    assert "Only in a.json" in out and "driver" in out

    code, out, _ = ts_mps(capsys, "diff", "a.json", "b.json", "--markdown")
    assert code == 0 and "| Arm | Load |" in out and out.startswith("# b.json against a.json")
    code, out, _ = ts_mps(capsys, "diff", "a.json", "b.json", "--json")
    assert code == 0 and json.loads(out)["version"] == 1


def test_diff_refuses_bad_input(capsys):
    Path("b.json").write_text("{}")
    code, _, err = ts_mps(capsys, "diff", saved("a.json", comparison(blocks=1)), "b.json")
    assert code == 3 and "b.json is not a study" in err

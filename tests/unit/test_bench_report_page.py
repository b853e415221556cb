"""The page in a real browser: whole by itself, readable on a phone, in print and in the dark."""

from itertools import pairwise

import chromium
import pytest
from benching import arm, result, run, samples, study

from ts_mps.bench.report.reading import read_study
from ts_mps.bench.report.writing import Source, write_report
from ts_mps.bench.summary import summarise
from ts_mps.files import write_json

EVIL = "<script>document.title='owned'</script><img src=http://example.org/x.png> & $x_1$"


def text_classifier(title=EVIL):
    """Workers 1, 2, 4, 8 at batch 8, MPS off, on and at 50 %; one failed run, open-loop rates."""
    pairs = []
    for workers, off, on in ((1, 3384.0, 3150.0), (2, 3900.0, 5600.0), (4, 4150.0, 8107.0), (8, 4010.0, 8020.0)):
        pairs += [(arm(workers), off), (arm(workers, mps=True), on)]
        pairs += [(arm(workers, mps=True, thread_percentage=50.0), on * 1.02)] if workers > 1 else []
    failed = run(
        pairs[4][0], 8, failure="Worker 4183 is not a client of the MPS daemon.", details="</pre><script>1</script>"
    )
    rates = [
        run(one, 9, result(rate, 4 / (1 - rate / cap), kind="poisson", rate=rate), samples=samples())
        for one, cap in ((pairs[5][0], 4000.0), (pairs[6][0], 7800.0))
        for rate in (1000.0, 2000.0, 3500.0, 7000.0)
        if rate < cap
    ]
    return study(pairs, noise=0.02, runs=[failed, *rates], title=title, settings={"slo_ms": 20.0})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    sources = []
    for name, made in (("text", text_classifier()), ("cpu", study([(arm(2, device="cpu"), 100.0)], blocks=2))):
        write_json(folder / f"{name}.json", made.as_json())
        read = read_study(folder / f"{name}.json")
        sources.append(Source(folder / f"{name}.json", read, summarise(read, prices={"gpu": 10.5})))
    return write_report(sources, folder / "report")[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = chromium.find()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(chromium.NAMES)} is on PATH")
    with chromium.tab(program, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


WIDTHS = {"desktop": (1100, False), "phone": (390, True)}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_needs_nothing_and_fits(browser, page, width, dark):
    pixels, mobile = WIDTHS[width]
    browser.open(page, pixels, mobile=mobile, dark=dark)
    # A picture from a name, a font or a script would be asked for while the page is laid out.
    fits = "document.documentElement.scrollWidth <= innerWidth && innerWidth == " + str(pixels)
    outside = f"""[...document.querySelectorAll('body *')]
        .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > {pixels} + 0.5)
        .map(e => e.outerHTML.slice(0, 200))"""
    asked = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert browser.evaluate(outside) == []
    assert browser.evaluate(fits)
    assert browser.evaluate("document.querySelectorAll('script, img, link:not([href=\"data:,\"])').length") == 0
    assert browser.evaluate("document.title") == "Benchmarks of ts-mps"
    assert EVIL in browser.evaluate("document.body.innerText")
    for complaint in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
        assert browser.seen(complaint) == []


def test_the_right_charts_show(browser, page):
    shown = """[...document.querySelectorAll('svg')]
        .filter(e => e.getBoundingClientRect().width).map(e => e.className.baseVal)"""
    browser.open(page, 1100)
    wide = browser.evaluate(shown)
    browser.open(page, 390, mobile=True)
    narrow = browser.evaluate(shown)
    assert set(wide) == {"wide"} and set(narrow) == {"narrow"} and len(wide) == len(narrow) >= 7


def test_dark_is_dark_and_light_is_light(browser, page):
    brightness = "(element => getComputedStyle(element).backgroundColor)(document.body)"
    label = "getComputedStyle(document.querySelector('svg.wide text')).fill"
    browser.open(page, 1100)
    light = browser.evaluate(brightness), browser.evaluate(label)
    browser.open(page, 1100, dark=True)
    dark = browser.evaluate(brightness), browser.evaluate(label)
    assert light[0] == "rgb(255, 255, 255)" and dark[0] == "rgb(21, 24, 28)"
    assert light[1] != dark[1], "charts follow the mode"


def test_it_can_be_read_without_seeing(browser, page):
    browser.open(page, 1100)
    levels = browser.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "no level is left out"
    assert browser.evaluate("[...document.querySelectorAll('th')].every(e => e.scope && e.textContent.trim() != '')")
    assert browser.evaluate("[...document.querySelectorAll('table')].every(e => e.caption && e.tHead)")
    texts = browser.evaluate("[...document.querySelectorAll('svg')].map(e => e.getAttribute('aria-label'))")
    assert all(len(text) > 60 for text in texts)
    ids = browser.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)) > 20
    links = browser.evaluate("[...document.querySelectorAll('nav a')].map(e => e.getAttribute('href').slice(1))")
    assert set(links) <= set(ids)
    shapes = "[...document.querySelectorAll('use')].every(e => document.querySelector(e.getAttribute('xlink:href')))"
    assert browser.evaluate(shapes), "every marker is in the page"


def test_it_prints_light_whatever_the_screen_is(browser, page):
    browser.open(page, 1100, dark=True)
    printed = browser.pdf()
    assert printed.startswith(b"%PDF") and len(printed) > 50_000
    assert printed.count(b"/Type /Page\n") > 3
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--page').trim()") == "#ffffff"
    hidden = (
        "[...document.querySelectorAll('details table')].filter(e => !e.checkVisibility({contentVisibilityAuto: true}))"
    )
    assert browser.evaluate(f"{hidden}.length") == 0, "what is folded on a screen is printed"

"""The page in a real browser: by mouse, by keyboard alone, in every state; nothing from outside."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import sync_playwright
from tests.serving.conftest import TOKEN

from lobule.data.scan import scan_files
from lobule.evaluation.recalibration import Recalibration
from lobule.inference.predictor import predict
from lobule.models.classifier import Heads, LinearHead

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with"),
]

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa"]}

NOTICE = "Research use only. Not for diagnosis."


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Watched:
    """A page of the browser, and all that it asked for or complained about."""

    def __init__(self, browser, guarded, *, width=1440, scheme="light"):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        self.page = self.context.new_page()
        self.origin = f"http://{guarded.host}"
        self.asked, self.complaints = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on(
            "console",
            lambda said: said.type in ("error", "warning") and self.complaints.append(said.text),
        )
        self.page.goto(f"{self.origin}/?token={TOKEN}")

    def check(self):
        """Nothing was asked elsewhere, nothing went wrong, and the notice is shown."""
        outside = [u for u in self.asked if not u.startswith((self.origin, "data:", "blob:"))]
        assert outside == []
        # a status that is no success is said to be an error, and some are meant here
        assert [c for c in self.complaints if "Failed to load resource" not in c] == []
        assert NOTICE in self.page.inner_text("body")

    def accessible(self):
        found = Axe().run(self.page, options=RULES)
        assert found.violations_count == 0, found.generate_report()
        wide = self.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        assert not wide, "the page is wider than the window"

    def shown(self):
        """Wait until photograph and heat map are there."""
        self.page.wait_for_selector("#viewer.alive")
        self.page.wait_for_selector("#viewer[data-layer=heat]", timeout=60_000)
        return self

    def send(self, *files, patient=""):
        self.page.set_input_files("#images", [str(file) for file in files])
        self.page.fill("#patient", patient)
        self.page.click("text=Ask the model")


@pytest.fixture
def watched(browser, guarded):
    opened = []

    def opens(**options):
        opened.append(Watched(browser, guarded, **options))
        return opened[-1]

    yield opens
    for one in opened:
        one.context.close()


def until(page, true, seconds=30):
    """Wait for an expression; the page's own policy lets no waiting code of the browser's in."""
    for _ in range(10 * seconds):
        if page.evaluate(true):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"it never came to be that {true}")


def test_by_mouse_from_upload_to_downloads(watched, photographs, guarded):
    one = watched()
    page = one.page
    one.send(photographs[0])
    one.shown()
    with guarded.client() as client:
        reply = client.post("/v1/predict", content=photographs[0].read_bytes(),
                            headers={"content-type": "image/png"})  # fmt: skip
    expected = reply.json()["results"][0]["answer"]
    told = float(page.get_attribute("meter[aria-label='probability of malignant']", "value"))
    assert abs(told - expected["probabilities"]["malignant"]) < 1e-6
    assert page.inner_text("#unit") == "log-odds"
    low, high = float(page.inner_text("#low")), float(page.inner_text("#high"))
    assert low < high
    until(page, "document.getElementById('believable').textContent.includes('random places')")
    page.check("input[value=contours]")
    page.wait_for_selector("#viewer[data-layer=contours]")
    page.check("input[value=gradcam]")
    until(page, "document.getElementById('unit').textContent.includes('no unit')")
    page.click("#in")
    assert page.locator(".cases li").count() == 5
    own = photographs[0].name.split("_")[0].removeprefix("patient-")
    assert f"patient {own}," not in page.inner_text(".cases")
    page.locator(".cases").scroll_into_view_if_needed()
    until(
        page,
        "[...document.querySelectorAll('.cases img')].every((i) => i.complete && i.naturalWidth)",
    )
    taken = {}
    for link in page.locator(".downloads a").all():
        with page.expect_download() as download:
            link.click()
        taken[download.value.suggested_filename] = download.value.path().read_bytes()
    assert set(taken) == {
        "lobule-overlay.png", "lobule-answers.csv", "lobule-answers.json", "lobule-report.html",
    }  # fmt: skip
    with Image.open(io.BytesIO(taken["lobule-overlay.png"])) as picture:
        assert picture.text["notice"] == NOTICE
        assert picture.text["model"] == expected["identity"]["model"]
    (row,) = csv.DictReader(io.StringIO(taken["lobule-answers.csv"].decode("utf-8-sig")))
    assert abs(float(row["prob_malignant"]) - expected["probabilities"]["malignant"]) < 1e-6
    assert row["notice"] == NOTICE
    record = json.loads(taken["lobule-answers.json"])["results"][0]["answer"]
    assert abs(record["probabilities"]["malignant"] - expected["probabilities"]["malignant"]) < 1e-6
    assert NOTICE in taken["lobule-report.html"].decode()
    assert b"<script" not in taken["lobule-report.html"]
    one.check()


def test_by_keyboard_alone_from_upload_to_download(watched, photographs):
    one = watched(width=320)
    page = one.page

    def tab_to(selector):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(s) => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached by keyboard")

    page.keyboard.press("Tab")
    assert page.inner_text(":focus") == "Skip to the content"
    tab_to("#images")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(str(photographs[0]))
    tab_to("button.main")
    page.keyboard.press("Enter")
    one.shown()
    tab_to("#viewer")
    for key in ("+", "ArrowLeft", "-", "0"):
        page.keyboard.press(key)
    tab_to("input[name=layer]")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#viewer[data-layer=contours]")
    assert page.locator("#opacity").is_disabled()
    tab_to(".downloads a[href$='answer.json']")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "lobule-answers.json"
    one.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1440])
def test_every_state_is_accessible(watched, photographs, tmp_path, scheme, width):
    one = watched(width=width, scheme=scheme)
    page = one.page
    one.accessible()
    one.send(photographs[0])
    one.shown().accessible()
    page.click("footer summary")
    one.accessible()
    page.click("#theme")
    one.accessible()
    page.goto(one.origin)
    noise = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)).save(
        noise
    )
    one.send(noise)
    one.shown()
    assert page.locator("h1.unlike").count() == 1
    one.accessible()
    page.goto(one.origin)
    text = tmp_path / "text.png"
    text.write_text("no image")
    one.send(*photographs[:3], text, patient="7")
    page.wait_for_selector("table.sortable")
    one.accessible()
    page.click("th:nth-child(4) button")
    one.accessible()
    page.goto(one.origin)
    one.send(text)
    page.wait_for_selector("p.problem")
    one.accessible()
    page.goto(f"{one.origin}/results/not-there")
    assert "not kept any more" in page.inner_text("main")
    one.accessible()
    one.check()


def test_several_photographs_are_sorted_and_taken_together_by_patient(watched, photographs):
    one = watched()
    page = one.page
    one.send(*photographs[::8], patient="7")
    page.wait_for_selector("table.sortable")
    first = page.locator("table.sortable").first

    def column():
        return [float(text) for text in first.locator("td.num").all_inner_texts()]

    page.click("th:nth-child(4) button")
    assert column() == sorted(column())
    assert first.locator("th[aria-sort=ascending]").count() == 1
    page.click("th:nth-child(4) button")
    assert column() == sorted(column(), reverse=True)
    known = first.locator("tbody tr:not(:has(.unlike)) td.num").all_inner_texts()
    mean = np.mean([float(text) for text in known])
    told = page.locator("table.sortable").nth(1).locator("td.num").all_inner_texts()
    assert int(told[0]) == len(known)
    assert abs(float(told[1]) - mean) < 1e-3
    page.click("tbody th a >> nth=0")
    one.shown()
    one.check()


def test_an_example_needs_no_file_and_a_dropped_one_no_click(watched, photographs):
    one = watched()
    page = one.page
    page.click("text=Example 1")
    one.shown()
    page.goto(one.origin)
    page.evaluate(
        """(bytes) => {
          const transfer = new DataTransfer();
          const file = new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"});
          transfer.items.add(file);
          const drop = new DragEvent("drop", {dataTransfer: transfer, bubbles: true});
          document.body.dispatchEvent(drop);
        }""",
        list(photographs[0].read_bytes()),
    )
    assert "dropped.png" in page.inner_text("#picked")
    page.click("text=Ask the model")
    one.shown()
    assert "dropped.png" in page.inner_text(".eyebrow")
    one.check()


def test_fifty_real_photographs_get_on_the_page_what_predict_says(watched, finished_run, real_data):
    paths = sorted((real_data / "breakhis-100x").rglob("*.jpg"))[::8][:50]
    expected = predict(finished_run.model, scan_files(paths)).table["prob_malignant"].tolist()
    one = watched()
    told = []
    for half in (paths[:25], paths[25:]):
        one.page.goto(one.origin)
        one.send(*half)
        one.page.wait_for_selector("table.sortable", timeout=60_000)
        table = one.page.locator("table.sortable").first
        told += table.locator("data").evaluate_all("all => all.map(one => Number(one.value))")
    assert np.abs(np.array(told) - expected).max() < 1e-6
    one.check()


PAYLOADS = [
    "<script>window.hit=1</script>", "<img src=x onerror=window.hit=1>",
    "\"><svg onload=window.hit=1>", "'-window.hit=1-'", "javascript:window.hit=1", "{{7*7}}",
    "${window.hit=1}", "</title><script>window.hit=1</script>",
    "</script><script>window.hit=1</script>", "<a href=javascript:window.hit=1>x</a>",
]  # fmt: skip


HOSTILE = [
    before + payload for payload in PAYLOADS
    for before in ("", " ", "=", "+", "@", "a", "\u202e", "%3C", "&lt;", "`")
]  # fmt: skip


def test_no_file_name_is_executed_by_page_or_report(watched, photographs):
    one = watched()
    page = one.page
    data = list(photographs[0].read_bytes())
    assert len(HOSTILE) == 100
    results = []
    for start in range(0, 100, 25):
        found = page.evaluate(
            """async ([names, bytes]) => {
              const form = new FormData();
              for (const name of names) {
                form.append("images", new File([new Uint8Array(bytes)], name, {type: "image/png"}));
                form.append("patient", name);
              }
              return (await fetch("/analyse", {method: "POST", body: form})).url;
            }""",
            [HOSTILE[start : start + 25], data],
        )
        page.goto(found)
        assert page.locator("table.sortable").first.locator("tbody tr").count() == 25
        assert page.evaluate("window.hit") is None
        results += page.evaluate("[...document.querySelectorAll('tbody th a')].map((a) => a.href)")
        text = page.evaluate("async (u) => (await fetch(u)).text()", found + "/answers.csv")
        for row in csv.DictReader(io.StringIO(text)):
            for cell in row.values():
                assert not cell.lstrip(" ").startswith(("=", "+", "@", "\t"))
        json.loads(page.evaluate("async (u) => (await fetch(u)).text()", found + "/answers.json"))
    for url in results[::5]:
        page.goto(url)
        page.wait_for_selector("#viewer.alive")
        assert page.evaluate("window.hit") is None
    report = page.evaluate("async (u) => (await fetch(u)).text()", results[0] + "/report.html")
    assert "<script" not in opened_alone(one, report)
    assert [c for c in one.complaints if "Failed to load" not in c] == []


def opened_alone(one, report):
    """Open a page as one who was sent the file does; nothing in it may run."""
    alone = one.context.new_page()
    alone.set_content(report)
    assert alone.evaluate("window.hit") is None
    return report


@pytest.fixture
def of_hostile_classes(finished_run):
    """A model of a hundred classes, whose names are scripts."""
    model = finished_run.model
    rng = np.random.default_rng(0)
    tissue = model.heads.tissue
    head = LinearHead(rng.normal(0, 0.01, (100, tissue.weight.shape[1])), np.zeros(100))
    colour = LinearHead(np.zeros((100, model.heads.colour.weight.shape[1])), np.zeros(100))
    info = replace(
        model.info, classes=tuple(HOSTILE), operating_points={},
        calibration={**model.info.calibration, **Recalibration("none").to_json()},
        sets={**model.info.sets, "quantile": 0.05},
    )  # fmt: skip
    heads = Heads(head, colour, np.full(100, 0.01))
    return replace(model, info=info, heads=heads, gate=None)


def test_no_class_name_is_executed_by_page_or_report(
    browser, serving, photographs, of_hostile_classes
):
    with serving(model=of_hostile_classes) as server:
        one = Watched(browser, server)
        page = one.page
        # the front page names all classes, and so does a result
        assert page.evaluate("window.hit") is None
        one.send(photographs[0])
        one.shown()
        text = page.inner_text("body")
        assert sum(" ".join(name.split()) in " ".join(text.split()) for name in HOSTILE) > 80
        one.check()
        found = page.url
        get = "async (u) => (await fetch(u)).text()"
        rows = list(csv.reader(io.StringIO(page.evaluate(get, found + "/answer.csv"))))
        for cell in (cell for row in rows for cell in row):
            assert not cell.lstrip(" ").startswith(("=", "+", "@", "\t"))
        answer = json.loads(page.evaluate(get, found + "/answer.json"))["results"][0]["answer"]
        assert list(answer["probabilities"]) == HOSTILE
        assert "<script" not in opened_alone(one, page.evaluate(get, found + "/report.html"))
        page.goto(one.origin)
        one.send(*photographs[:3])
        page.wait_for_selector("table.sortable")
        assert page.evaluate("window.hit") is None
        assert one.complaints == []
        one.context.close()

"""The page in a real browser: headless Chromium, a real server, a real bundle. Screenshots are kept in
``test-output/``."""

import base64
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browser
import drawn_bundles
import numpy as np
import pytest
from browser import CONTRAST, NARROW_PX, WIDE_PX, Page, overflowing
from conftest import CLASSES, ROOT, entries_of, served
from launch import QUICK, compare
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from vgg_export.bundle import evaluate, writer
from vgg_export.core import cache, files
from vgg_export.core.progress import Quiet
from vgg_export.data import signs
from vgg_export.data.splits import Item, Splits
from vgg_runtime.bundle import manifest, outputs, preprocess, session
from vgg_runtime.result import Result

PHOTO = ROOT / "calibration/images/cat.jpg"

if browser.ABSENT and browser.REQUIRED:

    def test_there_is_a_browser() -> None:
        pytest.fail(browser.MISSING)


pytestmark = browser.needed


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser.opened(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def port(bundle_folder: Path) -> Iterator[int]:
    with served(bundle_folder) as (number, _):
        yield number


@pytest.fixture(autouse=True)
def quiet(page: Page) -> Iterator[None]:
    """In every test: nothing in the console that the test did not expect, no request but to the page's own
    server."""
    yield
    assert page.complaints() == []
    assert [url for url in page.requests() if not url.startswith(("http://localhost:", "file://"))] == []


def live(page: Page, port: int, width: int = WIDE_PX, **media: str) -> None:
    page.open(f"http://localhost:{port}/", width, **media)
    page.wait(lambda: page.all("#boxes input"))


def texts(page: Page, selector: str) -> list[str]:
    return [node.text for node in page.all(selector)]


def unfold(page: Page) -> None:
    """Open what the small cards hide."""
    page.js("for (const node of document.querySelectorAll('#cards details')) node.open = true")


def figures(page: Page, variant: str) -> dict[str, list[str]]:
    """The table of a card by the name of its line."""
    unfold(page)
    lines = [
        [cell.text for cell in line.find_elements(By.CSS_SELECTOR, "td")]
        for line in page.all(f"#card-{variant} tbody tr")
    ]
    return {name: values for name, *values in lines}


def ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"


def megabytes(value: int) -> str:
    return f"{value / 1e6:.1f} MB" if value < 1e8 else f"{value / 1e6:.0f} MB"


def ratio(base: float, value: float, better: str, worse: str) -> str:
    if abs(base / value - 1) < 0.05:
        return "same"
    return f"{base / value:.1f}x {better}" if value <= base else f"{value / base:.1f}x {worse}"


def check_card(page: Page, row: dict[str, Any], base: dict[str, Any], picture: int = 0) -> None:
    """What the card of a variant shows is what the document says, in value, baseline and change."""
    unfold(page)
    card = page.one(f"#card-{row['variant']}")
    said, shown = row["predictions"][picture], figures(page, row["variant"])
    assert card.find_element(By.CSS_SELECTOR, ".says").text == said["labels"][0]
    bars = [line.text.split("\n") for line in card.find_elements(By.CSS_SELECTOR, ".bars li")]
    assert bars == [
        [label, f"{100 * p:.1f} %"] for label, p in zip(said["labels"], said["probabilities"], strict=True)
    ]
    widths = [
        float(r.get_dom_attribute("width") or "nan")
        for r in card.find_elements(By.CSS_SELECTOR, ".bars rect")
    ]
    assert widths == pytest.approx([100 * p for p in said["probabilities"]], abs=0.006)
    values = {"Latency (P50)": ms(row["p50_ms"]), "Load": ms(row["load_ms"])}
    values |= {"File": megabytes(row["size_bytes"]), "Peak memory": megabytes(row["peak_rss_bytes"])}
    values |= {"Agreement": f"{100 * row['built']['agreement']['rate']:.1f} %"}
    assert {name: shown[name][0] for name in values} == values
    if row is base:
        assert all(len(cells) == 1 for cells in shown.values())
        return
    assert shown["Latency (P50)"][1:] == [
        ms(base["p50_ms"]),
        ratio(base["p50_ms"], row["p50_ms"], "faster", "slower"),
    ]
    assert shown["File"][1:] == [
        megabytes(base["size_bytes"]),
        ratio(base["size_bytes"], row["size_bytes"], "less", "more"),
    ]
    same = base["predictions"][picture]["classes"][0] == said["classes"][0]
    assert ("✓ the baseline says the same" in card.text) == same
    assert ("≠ the baseline says " + base["predictions"][picture]["labels"][0] in card.text) == (not same)


def test_a_picture_becomes_a_card_per_variant_one_by_one(page: Page, port: int) -> None:
    live(page, port)
    assert page.all("#cards .card") == []
    page.js(
        "window.steps = []; new MutationObserver(() => steps.push(document.querySelectorAll('#cards"
        " table').length))"
        ".observe(document.getElementById('cards'), {childList: true})"
    )
    page.upload(PHOTO)
    assert page.one("#status").text == "Done: 3 variants."
    steps = page.js("return steps")
    assert steps == sorted(steps)
    assert set(steps) == {0, 1, 2, 3}
    result = page.js("return state.result")
    rows = result["variants"]
    assert [card.get_attribute("id") for card in page.all("#cards .card")] == [
        f"card-{row['variant']}" for row in rows
    ]
    for row in rows:
        check_card(page, row, rows[0])
    # 42 test pictures tell no loss of a point
    assert picked(page) == ([], [], [])
    assert page.one("#recommended").text.startswith("No recommendation: 42 test images are too few")
    assert result["device"]["cpu"] in page.one("#device").text
    assert "throttling unknown" in page.one("#state").text or result["device"]["throttled"] is not None
    page.picture("live-wide")


def picked(page: Page) -> tuple[list[str | None], list[str], list[str | None]]:
    """The cards that are marked, their tags, and the marked points of the scatter."""
    return (
        [card.get_attribute("id") for card in page.all(".card.pick")],
        texts(page, ".card .tag"),
        [point.get_attribute("data-variant") for point in page.all("#chart a.pick")],
    )


@pytest.fixture(scope="module")
def tested(
    bundle_folder: Path, splits: Splits, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[float | None], Path]:
    """Makes bundles of the shared models, evaluated on 112 pictures that are of the class which the baseline
    says, with what a recommended variant may lose."""
    folder, work = tmp_path_factory.mktemp("tested"), bundle_folder.parent
    made = [cache.of(work / f"{name}.onnx") for name in ("baseline", "quantized", "scaled", "signed")]
    entries = entries_of(*made)
    items = []
    model = session.Model(made[0].path, manifest.SessionSettings(), 1)
    for k in range(112):
        path = folder / f"{k}.png"
        signs.draw(CLASSES[k % 7], 3000 + k, 128).save(path)
        label = int(model(preprocess.load(path, entries[0].preprocessing)[None])[0].argmax())
        items.append(Item(path, label, files.sha256(path), f"source {k}"))
    shown = dataclasses.replace(splits, test=tuple(items))
    subjects = [evaluate.Subject(e.id, e.model, e.preprocessing, e.builds[0].targets) for e in entries]
    made_figures = evaluate.run(subjects, shown.test, folder / "evaluation.json", Quiet())
    figures = made_figures.read(evaluate.Evaluated).figures

    def bundle(max_drop: float | None) -> Path:
        contents = writer.Contents(entries, shown, None, figures, None, max_drop=max_drop)
        writer.run(contents, folder / f"artifacts-{max_drop}", Quiet())
        return folder / f"artifacts-{max_drop}"

    return bundle


@pytest.fixture(scope="module")
def any_loss_port(tested: Callable[[float | None], Path]) -> Iterator[int]:
    """A server of a bundle whose recommended variant may lose everything."""
    with served(tested(100.0)) as (number, _):
        yield number


@pytest.mark.release
def test_the_recommended_card_is_marked_when_all_have_answered(page: Page, any_loss_port: int) -> None:
    """With any loss allowed it is the fastest variant. No card is marked while the variants run."""
    live(page, any_loss_port)
    page.js(
        "window.early = 0; new MutationObserver(() => { if (state.running)"
        " early += document.querySelectorAll('.card.pick').length; })"
        ".observe(document.getElementById('cards'), {childList: true})"
    )
    page.upload(PHOTO)
    assert page.one("#status").text == "Done: 3 variants."
    assert page.js("return early") == 0
    result = page.js("return state.result")
    fastest = min(result["variants"], key=lambda row: row["p50_ms"])["variant"]
    assert result["recommended"]["variant"] == fastest
    assert picked(page) == ([f"card-{fastest}"], ["★ recommended"], [fastest])
    card = page.one(f"#card-{fastest}")
    assert card.get_attribute("aria-label") == f"{fastest}, recommended"
    assert result["recommended"]["reason"] in card.text
    unsure = result["recommended"]["unsure"]
    assert fastest == "baseline" or unsure in card.text
    assert page.one("#recommended").text == ""
    page.picture("recommended")


@pytest.mark.release
def test_a_report_marks_the_variant_that_loses_no_more_than_a_point(
    page: Page, tested: Callable[[float | None], Path], tmp_path: Path
) -> None:
    """Only the baseline loses so little; how fast the others are is not asked."""
    asked = ("--html", tmp_path / "r.html", "--json", tmp_path / "r.json")
    done = compare(*asked, *QUICK, bundle=tested(None))
    assert done.returncode == 0, done.stderr
    rows = {row["variant"]: row for row in json.loads((tmp_path / "r.json").read_text())["variants"]}
    lost = {name: 100 * (1 - row["built"]["top1"]["rate"]) for name, row in rows.items()}
    assert lost["baseline"] == 0
    assert all(rows[name]["built"]["loss"]["points"] > 1 for name in ("quantized", "scaled"))
    page.open((tmp_path / "r.html").as_uri())
    assert picked(page) == (["card-baseline"], ["★ recommended"], ["baseline"])
    assert "the fastest here of those that lose at most" in page.one("#card-baseline").text


@pytest.mark.release
def test_what_is_shown_is_what_the_server_sent(page: Page, port: int) -> None:
    """The document that the figures were checked against is the last line of the answer itself."""
    live(page, port)
    page.js(
        "const real = window.fetch; window.fetch = async (...a) => { const answer = await real(...a);"
        " if (String(a[0]).includes('compare')) answer.clone().text().then(text => { window.sent = text;"
        " }); return answer; }"
    )
    page.upload(PHOTO)
    page.wait(lambda: page.js("return window.sent"))
    last = json.loads(page.js("return sent").strip().splitlines()[-1])
    assert last["event"] == "end"
    assert last["result"] == page.js("return state.result")


def test_a_picture_can_be_dropped_and_pasted(page: Page, port: int) -> None:
    live(page, port)
    page.js(
        "for (const box of document.querySelectorAll('#boxes input')) box.checked = box.value === 'scaled'"
    )
    content = base64.b64encode(PHOTO.read_bytes()).decode()
    make = (
        "const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)); const t = new"
        " DataTransfer();"
        "t.items.add(new File([bytes], 'kitten.jpg', {type: 'image/jpeg'}));"
    )
    drop = (
        "document.getElementById('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: t, bubbles:"
        " true, cancelable: true}))"
    )
    paste = "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: t, bubbles: true}))"
    for number, how in enumerate((drop, paste), 1):
        page.js(make + how, content)
        page.wait(functools.partial(lambda n: len(page.all("#history button")) == n, number))
        assert page.one("#status").text == "Done: 1 variant."
    assert page.one("#history img").get_attribute("alt") == "2: kitten.jpg"
    page.js("const t = new DataTransfer(); t.setData('text/plain', 'words');" + drop)
    assert page.one("#status").text == "That was not a file; save the picture first, then drop the file."


@pytest.mark.release
def test_variants_are_chosen_and_the_history_comes_back(page: Page, port: int) -> None:
    live(page, port)
    page.one("#boxes input[value=quantized]").click()
    page.upload(PHOTO)
    assert [card.get_attribute("id") for card in page.all("#cards .card")] == ["card-baseline", "card-scaled"]
    page.one("#boxes input[value=scaled]").click()
    page.upload(ROOT / "calibration/images/coffee.jpg")
    assert len(page.all("#cards .card")) == 1
    assert len(page.all("#history button")) == 2
    assert [b.get_attribute("aria-pressed") for b in page.all("#history button")] == ["true", "false"]
    page.all("#history button")[1].click()
    assert len(page.all("#cards .card")) == 2
    assert page.one("#status").text == "Picture 1: cat.jpg"
    assert [b.get_attribute("aria-pressed") for b in page.all("#history button")] == ["false", "true"]
    assert (
        page.js("return document.activeElement.getAttribute('aria-label')")
        == "Show the results of picture 1: cat.jpg"
    )
    assert figures(page, "scaled")["File"][1:]  # beside the baseline: value, baseline and change
    page.all("#history button")[0].click()
    alone = figures(page, "baseline")
    assert alone
    assert all(len(values) == 1 for values in alone.values())  # alone: values only
    page.one("#boxes input[value=baseline]").click()
    page.one("#file").send_keys(str(PHOTO))
    assert page.one("#status").text == "Choose at least one variant."


@pytest.mark.release
def test_a_point_of_the_scatter_finds_its_card(page: Page, port: int) -> None:
    live(page, port, prefers_reduced_motion="reduce")  # a smooth scroll would move what is to be clicked
    page.upload(PHOTO)
    points = page.all("#chart a")
    assert {p.get_attribute("data-variant") for p in points} == {"baseline", "quantized", "scaled"}
    page.one("#chart a[data-variant=scaled] text").click()
    assert page.js("return document.activeElement.id") == "card-scaled"
    assert "found" in str(page.one("#card-scaled").get_attribute("class"))
    page.js("document.querySelector('#chart a[data-variant=quantized]').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.js("return document.activeElement.id") == "card-quantized"

    def places() -> list[str]:
        """The variants from left to right."""
        shown = {p.get_dom_attribute("data-variant"): p for p in page.all("#chart a")}
        centre = {
            v: p.find_element(By.CSS_SELECTOR, "circle:not(.target)").get_dom_attribute("cx")
            for v, p in shown.items()
        }
        return sorted(map(str, centre), key=lambda variant: float(centre[variant] or "nan"))

    rows = {row["variant"]: row for row in page.js("return state.result.variants")}
    assert places() == sorted(rows, key=lambda v: rows[v]["p50_ms"])
    page.one("#by-size").click()
    assert page.one("#by-size").get_attribute("aria-pressed") == "true"
    assert places()[0] == "quantized"


@pytest.mark.release
def test_while_it_runs_what_was_found_stays_and_a_second_picture_waits(page: Page, port: int) -> None:
    live(page, port, prefers_reduced_motion="reduce")
    page.upload(ROOT / "calibration/images/coffee.jpg")
    page.one("#file").send_keys(str(PHOTO))
    page.wait(lambda: page.one("#results").is_displayed() and page.all("#cards .says"))
    busy, said = page.js(  # at once: the next variant's own line may follow within milliseconds
        "find('baseline'); compare(new File([new Uint8Array(9)], 'second.png'));"
        "return [document.querySelector('#history button').disabled,"
        " document.getElementById('status').textContent]"
    )
    assert busy
    assert said == "One picture at a time: wait until all variants have answered."
    page.wait(lambda: page.one("body").get_attribute("aria-busy") == "false")
    assert page.js("return document.activeElement.id") == "card-baseline"
    assert "found" in str(page.one("#card-baseline").get_attribute("class"))
    assert len(page.all("#history button")) == 2


def test_a_server_that_is_stopped_says_so(page: Page, bundle_folder: Path) -> None:
    with served(bundle_folder) as (number, running):
        live(page, number)
        page.one("#file").send_keys(str(PHOTO))
        page.wait(lambda: page.all("#cards .says"))
        running.terminate()
        page.wait(lambda: page.one("body").get_attribute("aria-busy") == "false")
        assert page.one("#status").text == "The comparison ended early: the server was stopped."
        assert page.one("#card-baseline .says").text  # what was told stays


@pytest.mark.release
def test_what_is_refused_says_so_and_leaves_the_page_alive(page: Page, port: int, tmp_path: Path) -> None:
    live(page, port)
    (tmp_path / "notes.jpg").write_text("this is no picture, whatever its name says")
    (tmp_path / "half.jpg").write_bytes(PHOTO.read_bytes()[:9000])
    for name, sentence, status in (("notes.jpg", "this is not a picture", 415), ("half.jpg", "damaged", 422)):
        page.upload(tmp_path / name)
        assert sentence in page.one("#status").text
        assert "bad" in str(page.one("#status").get_attribute("class"))
        (complaint,) = page.complaints()  # the browser's own line for a 4xx; nothing else
        assert f"status of {status}" in complaint
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(20_000_000)
    page.upload(tmp_path / "huge.jpg")
    said = "This browser cannot read the picture, and with 20.0 MB it is too large to be sent as it is"
    assert page.one("#status").text == f"{said}; the limit is 12.0 MB."
    assert page.all("#cards .card") == []
    page.picture("refused")
    page.upload(PHOTO)
    assert len(page.all("#cards .card")) == 3


@pytest.mark.release
def test_a_variant_that_dies_is_a_card(page: Page, bundle_copy: Path) -> None:
    with served(bundle_copy) as (number, _):
        (bundle_copy / "models/quantized.onnx").write_bytes(b"damaged after the start")
        live(page, number)
        page.upload(PHOTO)
        assert len(page.all("#cards .card")) == 3
        (error,) = texts(page, ".card .bad:not(.agreement)")
        assert error.startswith("✗ ")
        assert "quantized" in str(page.one(".card:has(.bad:not(.agreement))").get_attribute("id"))
        assert page.one("#card-scaled .says").text
        assert figures(page, "quantized")["Latency (P50)"][0] == "–"
        page.picture("failing-variant")


def test_when_the_device_goes_away_the_page_says_so(page: Page, bundle_folder: Path) -> None:
    with served(bundle_folder) as (number, running):
        live(page, number)
        running.kill()
        running.wait()
        page.upload(PHOTO)
        assert page.one("#status").text == "The device cannot be reached; is compare.py still running there?"
    assert all("ERR_CONNECTION" in complaint for complaint in page.complaints())


@pytest.mark.release
def test_on_a_phone_nothing_is_cut_off(page: Page, port: int) -> None:
    live(page, port, NARROW_PX)
    page.upload(PHOTO)
    assert page.js("return document.documentElement.scrollWidth") <= NARROW_PX
    assert overflowing(page) == []
    assert len({card.rect["x"] for card in page.all("#cards .card")}) == 1  # one below the other
    small = [
        n.text or n.get_attribute("id")
        for n in page.all("button, label, #chart a")
        if n.is_displayed() and n.rect["height"] < 24
    ]
    assert small == []  # WCAG 2.2, target size
    page.picture("live-narrow")
    chart = page.one("#chart svg")
    # text keeps its size
    assert float(str(chart.get_dom_attribute("viewBox")).split()[2]) == pytest.approx(
        chart.rect["width"], abs=1
    )
    live(page, port, WIDE_PX)
    page.upload(PHOTO)
    assert len({card.rect["x"] for card in page.all("#cards .card")}) > 1


@pytest.fixture(scope="module")
def report(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A report and the JSON of the same run."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("report")
    command: list[str | Path] = [sys.executable, bundle_folder / "runtime/compare.py", "--budget", "0.2"]
    subprocess.run(
        [*command, "--html", folder / "report.html", "--json", folder / "r.json"],
        check=True,
        capture_output=True,
    )
    return folder / "report.html", json.loads((folder / "r.json").read_text())


def test_the_saved_report_opens_from_disk(page: Page, report: tuple[Path, dict[str, Any]]) -> None:
    path, result = report
    page.open(path.as_uri())
    rows = result["variants"]
    assert [card.get_attribute("id") for card in page.all("#cards .card")] == [
        f"card-{row['variant']}" for row in rows
    ]
    assert not page.one("#live").is_displayed()
    pictures = page.all("#pictures button")
    assert len(pictures) == len(result["images"]) > 1
    for k, button in enumerate(pictures):
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert page.js("return arguments[0].querySelector('img').naturalWidth", button) > 0
        for row in rows:
            check_card(page, row, rows[0], k)
        name = Path(result["images"][k]["file"]).name
        assert page.one("#shown").text.startswith(f"The cards show the predictions for {name}, ")
    n = rows[0]["agreement"]["n"]
    assert n > 1
    for row in rows[1:]:
        assert figures(page, row["variant"])[f"Agreement on these {n}"][:2] == [
            f"{100 * row['agreement']['rate']:.1f} %",
            "100.0 %",
        ]
    assert [url.rpartition("/")[2] for url in page.requests()] == ["report.html"]
    page.picture("report")


def test_the_report_names_the_class_and_counts_what_it_leaves_out(
    page: Page, report: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vgg_runtime.report import page as template

    result = json.loads(json.dumps(report[1]))
    n = len(result["images"])
    result["images"][0] |= {"label": "tabby", "fitted": True}
    for row in result["variants"]:
        row["accuracy"] = {"rate": 0.5, "n": 4, "interval95": [0.15, 0.85]}
    monkeypatch.setattr(template, "MAX_PICTURES", 2)
    text = template.report(Result.from_json(result), [PHOTO] * n)
    held = re.search(r'id="result">(.*?)</script>', text)
    assert held
    data = json.loads(held[1])
    assert (len(data["images"]), data["image_count"]) == (2, n)
    assert [len(row["predictions"]) for row in data["variants"]] == [2] * len(data["variants"])
    (tmp_path / "r.html").write_text(text)
    page.open((tmp_path / "r.html").as_uri())
    assert page.one("#picker-title").text == f"Pictures: 2 of {n} shown, all counted"
    assert "of class tabby, used in fitting" in page.one("#shown").text
    assert figures(page, "scaled")["Top-1 on these 4"] == ["50.0 %", "50.0 %", "same"]


def test_what_is_assumed_and_what_is_not_understood_is_said(
    page: Page, report: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    from vgg_runtime.report import page as template

    result = json.loads(json.dumps(report[1]))
    problem = "the checkpoint is right on 4.5 % of 200 labelled pictures"
    result["bundle"] |= {"assumed": ["ReLU behind every layer", "pictures in RGB"], "problem": problem}
    result["recommended"] = {"variant": None, "max_loss_points": 1.0, "reason": problem}
    (tmp_path / "r.html").write_text(
        template.report(Result.from_json(result), [PHOTO] * len(result["images"]))
    )
    page.open((tmp_path / "r.html").as_uri())
    assert (
        page.one("#assumed").text
        == "Assumed, since the checkpoint does not say: ReLU behind every layer; pictures in RGB"
    )
    assert page.one("#notice").text == problem
    assert page.one("#recommended").text == f"No recommendation: {problem}."
    assert page.all(".card.pick") == []
    page.picture("not-understood")
    page.open(report[0].as_uri())  # nothing is assumed of this one
    assert not page.one("#assumed").is_displayed()


def test_what_a_stranger_wrote_is_shown_as_text(
    page: Page, report: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    from vgg_runtime.report import page as template

    hostile = "<img src=x onerror=window.owned=1></script><script>window.owned=1</script>"
    result = json.loads(json.dumps(report[1]))
    for row in result["variants"]:
        row["title"] = row["description"] = row["error"] = hostile
        for said in row["predictions"]:
            said["labels"] = [hostile] * 5
    for image in result["images"]:
        image["file"] = image["label"] = hostile
    result["bundle"]["notice"] = result["bundle"]["weights"]["what"] = result["bundle"]["problem"] = hostile
    result["bundle"]["assumed"] = [hostile]
    (tmp_path / "r.html").write_text(
        template.report(Result.from_json(result), [PHOTO] * len(result["images"]))
    )
    page.open((tmp_path / "r.html").as_uri())
    assert len(page.all("#cards .card")) == 3
    assert set(texts(page, ".says")) == {hostile}
    assert page.js("return window.owned") is None
    assert page.all(".card img") == []


def test_the_policy_stops_what_is_not_the_pages_own(page: Page, port: int) -> None:
    live(page, port)
    page.js(
        "const s = document.createElement('script'); s.textContent = 'window.owned = 1';"
        " document.body.append(s)"
    )
    page.js("const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i)")
    page.js("fetch('http://127.0.0.1:9/').catch(() => { window.stopped = 1; })")
    page.wait(lambda: page.js("return window.stopped"))
    assert page.js("return window.owned") is None
    complaints = page.complaints()
    assert len(complaints) >= 3
    assert all("Content Security Policy" in text for text in complaints)
    page.requests()


# What Lighthouse looks at, looked at here: names, contrast, the order of the focus, motion.


@pytest.mark.release
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(scheme: str, page: Page, port: int) -> None:
    live(page, port, prefers_color_scheme=scheme)
    page.upload(PHOTO)
    seen, bad = page.js(CONTRAST)
    assert seen > 80
    assert bad == []
    page.picture(f"live-{scheme}")
    page.js("document.querySelector('h1').style.color = 'gray'; document.body.style.background = 'gray'")
    assert page.js(CONTRAST)[1]  # the check can fail


def accessible(page: Page) -> list[dict[str, Any]]:
    """The accessibility tree: role, name and whether it can be focused, of what is not ignored."""
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [
        {
            "role": node.get("role", {}).get("value"),
            "name": node.get("name", {}).get("value", ""),
            "focusable": any(
                p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", [])
            ),
        }
        for node in nodes
        if not node["ignored"]
    ]


def unnamed(page: Page) -> list[dict[str, Any]]:
    roles = {
        "image",
        "button",
        "checkbox",
        "link",
        "heading",
        "article",
        "region",
        "group",
        "graphics-document",
    }
    return [
        n
        for n in accessible(page)
        if (n["focusable"] or n["role"] in roles) and not n["name"] and n["role"] != "RootWebArea"
    ]


@pytest.mark.release
def test_everything_has_a_name(page: Page, port: int) -> None:
    live(page, port)
    page.upload(PHOTO)
    found = accessible(page)
    assert {"main", "banner", "contentinfo", "status", "checkbox", "button", "link", "article", "table"} <= {
        n["role"] for n in found
    }
    assert unnamed(page) == []
    assert page.js("return document.documentElement.lang") == "en"
    assert len(page.all("h1")) == 1
    levels = [int(h.tag_name[1]) for h in page.all("h1, h2, h3") if h.is_displayed()]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    page.js("document.getElementById('choose').textContent = ''")
    assert [n["role"] for n in unnamed(page)] == ["button"]  # the check can fail


@pytest.mark.release
def test_the_keyboard_reaches_everything_in_reading_order(page: Page, port: int) -> None:
    live(page, port)
    page.upload(PHOTO)
    page.js("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached: list[str] = []
    for _ in range(40):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        name = page.js(
            "const n = document.activeElement; if (n === document.body) return null; const s ="
            " getComputedStyle(n);"
            "if (s.outlineStyle === 'none' || parseFloat(s.outlineWidth) < 2) return 'no outline: ' +"
            " n.outerHTML;"
            "return n.id || n.value || n.dataset.variant || n.getAttribute('aria-label')"
        )
        if name is None or name in reached[:1]:
            break
        reached.append(name)
    shown = page.js("return [...document.querySelectorAll('#chart a')].map(n => n.dataset.variant)")
    boxes = ["baseline", "quantized", "scaled"]
    assert reached == [
        "choose",
        "photograph",
        *boxes,
        "Show the results of picture 1: cat.jpg",
        "by-speed",
        "by-size",
        *shown,
        "sort",
        "card-quantized-more",
        "card-scaled-more",
    ]
    assert not page.js("return [...document.querySelectorAll('[tabindex]')].some(n => n.tabIndex > 0)")


@pytest.mark.release
@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_those_who_asked_for_that(motion: str, page: Page, port: int) -> None:
    live(page, port, prefers_reduced_motion=motion)
    page.upload(PHOTO)
    moving = page.js(
        "return [...document.querySelectorAll('*')].filter(n => { const s = getComputedStyle(n);"
        " return parseFloat(s.transitionDuration) > 0 || s.animationName !== 'none' || s.scrollBehavior"
        " === 'smooth' }).length"
    )
    assert (moving > 0) == (motion == "no-preference")


def test_nothing_is_told_by_colour_alone(page: Page, any_loss_port: int) -> None:
    """What stands out by colour also says so in words or by a sign."""
    live(page, any_loss_port)
    page.upload(PHOTO)
    page.js(
        "state.result.variants[2].error = 'it hangs';"
        " state.result.variants[1].predictions[0].classes[0] = 1000; show()"
    )
    assert {mark.text[0] for mark in page.all("#cards .bad")} == {"≠", "✗"}
    (pick,) = page.all(".card.pick")
    assert "★ recommended" in pick.text
    assert str(pick.get_attribute("aria-label")).endswith(", recommended")


# Other kinds of output


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, drawn_bundles.Drawn]:
    made = (outputs.SIGMOID, outputs.MULTI_LABEL)
    return {kind: drawn_bundles.draw(tmp_path_factory.mktemp(kind) / "artifacts", kind) for kind in made}


def chances(z: np.ndarray[Any, Any]) -> dict[str, float]:
    return dict(zip(drawn_bundles.NAMES[outputs.MULTI_LABEL], 1 / (1 + np.exp(-z)), strict=True))


@pytest.mark.release
@pytest.mark.parametrize("colour", [(127, 127, 127), (208, 166, 233), (19, 4, 44)])
def test_the_labels_above_a_half_are_on_the_cards(
    colour: tuple[int, int, int], page: Page, kinds: dict[str, drawn_bundles.Drawn], tmp_path: Path
) -> None:
    """The grey picture is given no label by the baseline, and some by far."""
    drawn = kinds[outputs.MULTI_LABEL]
    picture = drawn_bundles.paint(tmp_path / "p.png", colour)
    with drawn_bundles.served(drawn) as number:
        live(page, number)
        page.upload(picture)
    assert page.one("#status").text == "Done: 3 variants."
    built = {v.id: v.build.evaluation for v in manifest.read(drawn.folder).variants}
    base = chances(drawn.logits("baseline", colour)[0])
    theirs = sorted((name for name in base if base[name] > 0.5), key=lambda name: -base[name])
    for variant in drawn.layers:
        own = chances(drawn.logits(variant, colour)[0])
        order = sorted(own, key=lambda name: -own[name])
        above = [name for name in order if own[name] > 0.5]
        unfold(page)
        card = page.one(f"#card-{variant}")
        assert card.find_element(By.CSS_SELECTOR, ".says").text == "Labels above 0.5: " + (
            ", ".join(above) or "none"
        )
        bars = [line.text.split("\n") for line in card.find_elements(By.CSS_SELECTOR, ".bars li")]
        assert bars == [[name, f"{100 * own[name]:.1f} %"] for name in order[: max(5, len(above))]]
        same = set(above) == set(theirs)
        if variant != "baseline":
            assert ("✓ the baseline says the same" in card.text) == same
            different = "≠ the baseline says " + (", ".join(theirs) or "none")
            assert (different in card.text) == (not same)
        figures_shown, evaluated = figures(page, variant), built[variant]
        assert evaluated is not None
        assert figures_shown["Per-label agreement"][0] == f"{100 * evaluated.agreement.rate:.1f} %"
        assert figures_shown["Top-1"][0] == "–"
        caption = card.find_element(By.CSS_SELECTOR, "caption").text
        assert caption.startswith("Per-label agreement: 120 test images; a multi-label network has no top-1")
    assert "per-label agreement with the baseline on test images" in page.one("#chart").text
    if colour == (127, 127, 127):
        page.picture("multi-label")


@pytest.mark.release
def test_a_report_of_two_classes_says_accuracy(
    page: Page, kinds: dict[str, drawn_bundles.Drawn], tmp_path: Path
) -> None:
    drawn, colour = kinds[outputs.SIGMOID], (208, 166, 233)
    picture = drawn_bundles.paint(tmp_path / "in/night/p.png", colour)
    asked = ("--bundle", drawn.folder, "--images", picture.parents[1], "--html", tmp_path / "r.html")
    assert compare(*asked, *QUICK).returncode == 0
    page.open((tmp_path / "r.html").as_uri())
    for variant in manifest.read(drawn.folder).variants:
        yes = float(1 / (1 + np.exp(-drawn.logits(variant.id, colour)[0, 0])))
        shares = {"night": yes, "day": 1 - yes}
        order = sorted(shares, key=lambda name: -shares[name])
        unfold(page)
        card, evaluated = page.one(f"#card-{variant.id}"), variant.build.evaluation
        assert card.find_element(By.CSS_SELECTOR, ".says").text == order[0]
        bars = [line.text.split("\n") for line in card.find_elements(By.CSS_SELECTOR, ".bars li")]
        assert bars == [[name, f"{100 * shares[name]:.1f} %"] for name in order]
        assert evaluated is not None
        assert evaluated.top1 is not None
        assert figures(page, variant.id)["Accuracy at 0.5"][0] == f"{100 * evaluated.top1.rate:.1f} %"
        caption = card.find_element(By.CSS_SELECTOR, "caption").text
        assert caption == "Accuracy at 0.5 and agreement: 120 test images"


# What comes first


def ids(page: Page) -> list[str]:
    return [str(card.get_attribute("id")) for card in page.all("#cards .card")]


@pytest.fixture
def chosen(report: tuple[Path, dict[str, Any]], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A report of a search, with figures that are easy to tell apart."""
    from vgg_runtime.report import page as template

    result = json.loads(json.dumps(report[1]))
    base, quantized, scaled = result["variants"]
    for row, ms_, size, peak in (
        (base, 80.0, 100e6, 900e6),
        (quantized, 40.0, 25e6, 300e6),
        (scaled, 2.0, 5e6, 90e6),
    ):
        row |= {"p50_ms": ms_, "size_bytes": int(size), "peak_rss_bytes": int(peak), "marks": []}
    loss = {"points": 0.4, "error_points": 0.5, "n": 600, "counted_share": 1.0, "halved_by": 1800}
    scaled["built"] |= {"loss": loss}
    quantized["marks"] = ["drifting: 2.60x within a round"]
    reason, unsure = "the search's choice for a loss of at most 1 point", "0.4 points lost on 600 test images"
    result["recommended"] = {"variant": "scaled", "max_loss_points": 1.0, "reason": reason, "unsure": unsure}
    result["explanations"] = ["int8 is little faster here"]
    path = tmp_path / "chosen.html"
    path.write_text(template.report(Result.from_json(result), [PHOTO] * len(result["images"])))
    return path, result


def test_the_recommended_variant_comes_first_and_says_what_it_gains(
    page: Page, chosen: tuple[Path, dict[str, Any]]
) -> None:
    page.open(chosen[0].as_uri())
    assert ids(page) == ["card-scaled", "card-baseline", "card-quantized"]
    assert [card.get_attribute("id") for card in page.all(".card.large")] == ["card-scaled", "card-baseline"]
    assert page.one("#verdict-title").text == "Use scaled"
    tiles = [tile.text.split("\n") for tile in page.all("#gains div")]
    assert tiles == [
        ["faster", "40x", "2.00 ms instead of 80.0 ms"],
        ["smaller", "20x", "5.0 MB instead of 100 MB"],
        ["less memory", "10x", "90.0 MB instead of 900 MB"],
        ["points lost", "0.4", "on 600 test images"],
    ]
    said = "The search's choice for a loss of at most 1 point. 0.4 points lost on 600 test images."
    assert page.one("#why").text == said
    assert "! drifting: 2.60x within a round" in page.one("#card-quantized").text
    assert page.one("#explained").text == "→ int8 is little faster here."
    verdict, chart = page.one("#verdict").rect, page.one("#chart").rect
    assert verdict["x"] + verdict["width"] <= chart["x"]  # beside each other
    for scheme, width, name in (
        ("light", WIDE_PX, "chosen-wide"),
        ("dark", WIDE_PX, "chosen-dark"),
        ("light", NARROW_PX, "chosen-narrow"),
    ):
        page.open(chosen[0].as_uri(), width, prefers_color_scheme=scheme)
        assert overflowing(page) == []
        assert page.js("return document.documentElement.scrollWidth") <= width
        assert page.js(CONTRAST)[1] == []
        page.picture(name)


def test_the_other_cards_are_sorted_as_asked(
    page: Page, chosen: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    from vgg_runtime.report import page as template

    result = json.loads(json.dumps(chosen[1]))
    for name, ms_, size, agreement in (("a", 9.0, 1, 0.9), ("b", 3.0, 3, 0.8), ("c", None, 2, 0.99)):
        row = json.loads(json.dumps(result["variants"][1]))
        row |= {"variant": name, "title": name, "p50_ms": ms_, "size_bytes": size * 1_000_000}
        row["built"]["agreement"]["rate"] = agreement
        result["variants"].append(row)
    (tmp_path / "r.html").write_text(
        template.report(Result.from_json(result), [PHOTO] * len(result["images"]))
    )
    page.open((tmp_path / "r.html").as_uri())
    page.js("document.querySelector('#card-b details').open = true")
    for by, order in (("p50_ms", "bac"), ("size_bytes", "acb"), ("agreement", "cab"), ("listed", "abc")):
        page.js(
            "const s = document.getElementById('sort'); s.value = arguments[0];"
            " s.dispatchEvent(new Event('change'))",
            by,
        )
        found = [name.removeprefix("card-") for name in ids(page)[2:]]
        assert [name for name in found if name in "abc"] == list(order), by
    assert page.js("return document.querySelector('#card-b details').open")  # it stays open


def test_without_a_recommendation_the_chart_has_the_place_alone(
    page: Page, report: tuple[Path, dict[str, Any]]
) -> None:
    page.open(report[0].as_uri())
    assert not page.one("#verdict").is_displayed()
    assert page.one("#chart").rect["width"] > 0.8 * page.one("#results").rect["width"]


# Photographs of phones


@pytest.mark.release
def test_a_picture_above_the_limit_is_made_smaller_in_the_browser(
    page: Page, port: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (3000, 4000, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6
    noise.save(tmp_path / "large.jpg", quality=97, exif=exif)
    assert (tmp_path / "large.jpg").stat().st_size > 12_000_000
    live(page, port)
    page.js(
        "const real = window.fetch; window.fetch = async (address, how) => { if (how && how.body) {"
        " const"
        " image = await createImageBitmap(how.body); window.sent = [how.body.size, how.body.type,"
        " image.width, image.height]; } return real(address, how); }"
    )
    page.upload(tmp_path / "large.jpg")
    assert page.one("#status").text == "Done: 3 variants."
    size, kind, width, height = page.js("return window.sent")
    assert size < 12_000_000
    assert (kind, width, height) == ("image/jpeg", 1536, 2048)  # upright
    assert page.one("#history img").get_attribute("alt") == "1: large.jpg"


def test_what_the_browser_cannot_read_is_a_sentence(page: Page, port: int, tmp_path: Path) -> None:
    live(page, port)
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(500))
    page.upload(tmp_path / "phone.heic")
    assert page.one("#status").text.startswith("This browser cannot read HEIC pictures; choose one in JPEG")
    with (tmp_path / "film.jpg").open("wb") as file:
        file.truncate(51_000_000)
    page.upload(tmp_path / "film.jpg")
    assert page.one("#status").text == "This file has 51.0 MB; the limit is 50.0 MB."
    page.upload(PHOTO)
    assert page.one("#status").text == "Done: 3 variants."

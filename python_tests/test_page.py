# SPDX-License-Identifier: Apache-2.0
"""The service's page in a real browser, against real explanations of the bundled model."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devtools import Browser
from page_stub import PAGE, PageStub
from PIL import Image

from cae_fast.colors import color_table
from cae_fast.demo import model_folder

pytestmark = pytest.mark.browser

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title = 2</script>'
SHOWN = (
    "!document.querySelector('#shown').hidden && document.querySelector('#working').hidden && "
    "document.querySelector('#manifold-note').textContent"
)


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "downloads").mkdir()
    with Browser(chromium, folder / "profile", folder / "downloads") as started:
        yield started


@pytest.fixture(scope="module")
def downloads(browser: Browser) -> Path:
    return browser.downloads


@pytest.fixture(scope="module")
def _stub() -> Iterator[PageStub]:
    stub = PageStub(model_folder("digits"))
    yield stub
    stub.close()


@pytest.fixture
def stub(_stub: PageStub) -> PageStub:
    _stub.reset()
    return _stub


def text(browser: Browser, selector: str) -> str:
    return str(browser.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))


def is_hidden(browser: Browser, selector: str) -> bool:
    found = f"document.querySelector({json.dumps(selector)})"
    return bool(browser.evaluate(f"{found}.getClientRects().length === 0"))


def set_value(browser: Browser, selector: str, value: object, event: str = "input") -> None:
    browser.evaluate(
        f"(() => {{ const it = document.querySelector({json.dumps(selector)}); "
        f"it.value = {json.dumps(value)}; it.dispatchEvent(new Event('{event}')); }})()"
    )


def pixels(browser: Browser, selector: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What a canvas holds, [H, W, 4]."""
    uri = browser.evaluate(f"document.querySelector({json.dumps(selector)}).toDataURL('image/png')")
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as opened:
        return np.asarray(opened.convert("RGBA"))


def position(browser: Browser) -> float:
    """The t that the page says."""
    found = re.match(r"t = (\d\.\d{3})", text(browser, "#frame-at"))
    assert found is not None
    return float(found[1])


def take_sample(browser: Browser, index: int = 0) -> None:
    sample = f"document.querySelectorAll('#samples button')[{index}]"
    browser.wait(f"{sample}?.blob")
    browser.evaluate(f"{sample}.click()")


def explain_sample(browser: Browser, stub: PageStub, **options: Any) -> None:
    browser.open(stub.url, **options)
    take_sample(browser)
    browser.wait(SHOWN)


def test_page_names_no_other_origin_and_holds_no_inline_code() -> None:
    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            assert not [name for name in given if name == "style" or name.startswith("on")]
            assert tag != "style"
            assert tag != "script" or given.get("src")
            for name in ("src", "href"):
                assert not re.match(r"\w+:|/", given.get(name) or ""), given

    Reader().feed((PAGE / "index.html").read_text(encoding="utf-8"))
    for path in PAGE.glob("*.*s"):
        content = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|url\(|@import|innerHTML|eval\(", content), path.name


def test_sample_to_explanation_within_the_page_policy(browser: Browser, stub: PageStub) -> None:
    explain_sample(browser, stub)
    assert browser.complaints == []
    assert {url.split("/")[2] for url in browser.asked if not url.startswith("blob:")} == {
        stub.url.split("/")[2]
    }
    answer = stub.answers[-1]
    assert answer["status"] == "flipped"
    assert text(browser, "#badge") == "Flipped"
    source, reached = (answer[f"{which}_class"]["name"] for which in ("source", "reached"))
    assert text(browser, "#headline") == f"{source} → {reached}"
    assert text(browser, "#says").replace("\xa0", " ") == answer["status_text"]
    assert "For research, not for diagnosis" in text(browser, ".notice")
    for name in ("image", "reconstruction", "counterfactual"):
        with Image.open(io.BytesIO(base64.b64decode(answer["images"][name]))) as opened:
            wanted = np.asarray(opened.convert("RGBA"))
        np.testing.assert_array_equal(pixels(browser, f"#tile-{name} canvas"), wanted)
    assert text(browser, "svg .flip-label") == f"flip at {answer['t_flip']:.3f}"


def test_map_has_the_reports_colours_and_obeys_its_sliders(
    browser: Browser, stub: PageStub
) -> None:
    explain_sample(browser, stub)
    url = json.dumps(stub.url + "page/pictures.js")
    table = np.array(browser.evaluate(f"import({url}).then(({{ HEAT }}) => HEAT)"))
    assert np.abs(table - color_table("inferno").astype(int)).max() <= 1
    answer = stub.answers[-1]["images"]["saliency"]
    with Image.open(io.BytesIO(base64.b64decode(answer))) as opened:
        values = np.asarray(opened.convert("L")) / 255
    alpha = pixels(browser, "#tile-saliency .heat")[..., 3]
    np.testing.assert_allclose(alpha, 255 * np.sqrt(values), atol=0.51)
    set_value(browser, "#threshold", 50)
    alpha = pixels(browser, "#tile-saliency .heat")[..., 3]
    np.testing.assert_allclose(alpha, 255 * np.sqrt(np.clip(2 * values - 1, 0, 1)), atol=0.51)
    set_value(browser, "#opacity", 40)
    opacity = "getComputedStyle(document.querySelector('#tile-saliency .heat')).opacity"
    assert browser.evaluate(opacity) == "0.4"
    assert browser.complaints == []


def test_slider_walks_the_path_without_a_request(browser: Browser, stub: PageStub) -> None:
    explain_sample(browser, stub)
    answer, asked = stub.answers[-1], len(browser.asked)
    assert text(browser, "#frame-at") == f"t = {answer['t_flip']:.3f}, the flip"
    frames = answer["frames"]
    for row in (0, 7, len(frames["t"]) - 1):
        set_value(browser, "#position", frames["t"][row] + 1e-4)
        assert position(browser) == pytest.approx(frames["t"][row], abs=5.1e-4)
        with Image.open(io.BytesIO(base64.b64decode(frames["png"][row]))) as opened:
            wanted = np.asarray(opened.convert("RGBA"))
        np.testing.assert_array_equal(pixels(browser, "#tile-frame canvas"), wanted)
        best = int(np.argmax(frames["probabilities"][row]))
        assert text(browser, "#frame-read").startswith(f"read as {best}, ")
    assert len(browser.asked) == asked


def test_keys_and_pointer_move_along_the_path(browser: Browser, stub: PageStub) -> None:
    explain_sample(browser, stub)
    flip, t = stub.answers[-1]["t_flip"], stub.answers[-1]["frames"]["t"]
    browser.evaluate("document.querySelector('#position').focus()")
    browser.press("ArrowRight")
    following = min(value for value in t if value > flip + 1e-6)
    assert position(browser) == pytest.approx(following, abs=5.1e-4)
    browser.press("ArrowLeft")
    assert text(browser, "#frame-at").endswith("the flip")
    spoken = browser.evaluate("document.querySelector('#position').getAttribute('aria-valuetext')")
    assert "the flip, read as" in spoken
    browser.evaluate("document.querySelector('#curve').scrollIntoView({block: 'center'})")
    # Anything below the plot's left edge is the image itself.
    left, top = browser.evaluate(
        "(({left, top}) => [left, top])(document.querySelector('#curve').getBoundingClientRect())"
    )
    browser.click(left + 20, top + 100)
    assert position(browser) == 0.0
    browser.evaluate("document.querySelector('#to-flip').click()")
    assert text(browser, "#frame-at").endswith("the flip")


def test_another_target_is_another_question(browser: Browser, stub: PageStub) -> None:
    explain_sample(browser, stub)
    assert "target" not in stub.questions[-1]
    set_value(browser, "#target", "8", "change")
    browser.wait(f"document.querySelector('#headline').textContent === '3 → 8' && {SHOWN}")
    assert stub.questions[-1]["target"] == "8"
    browser.evaluate("document.querySelector('.bar[data-k=\"0\"]').click()")
    browser.wait(f"document.querySelector('#headline').textContent === '3 → 0' && {SHOWN}")
    assert [question.get("target") for question in stub.questions] == [None, "8", "0"]
    assert len([url for url in browser.asked if url.endswith("/manifold")]) == 1
    set_value(browser, "#target", "3", "change")
    browser.wait(f"document.querySelector('#case').dataset.status === 'already_target' && {SHOWN}")
    assert is_hidden(browser, "#tile-counterfactual")
    assert is_hidden(browser, "#path-section")
    assert browser.complaints == []


def test_file_drop_and_paste(browser: Browser, stub: PageStub, tmp_path: Path) -> None:
    folder = model_folder("digits") / "samples"
    image = tmp_path / "my image.png"
    image.write_bytes((folder / "03_8_as_3.png").read_bytes())
    browser.open(stub.url)
    browser.wait("document.querySelectorAll('#samples button').length")
    browser.choose_file("#file", image)
    browser.wait(f"{SHOWN} && document.querySelector('#image-name').textContent === 'my image.png'")
    encoded = base64.b64encode((folder / "04_4_as_9.png").read_bytes()).decode()
    for name, event in (
        ("dropped.png", "new DragEvent('drop', {dataTransfer: files, bubbles: true})"),
        ("pasted.png", "new ClipboardEvent('paste', {clipboardData: files, bubbles: true})"),
    ):
        browser.evaluate(
            f"(() => {{ const bytes = Uint8Array.from(atob('{encoded}'), (c) => c.charCodeAt(0));"
            f"const files = new DataTransfer(); files.items.add(new File([bytes], '{name}'));"
            f"document.querySelector('#drop').dispatchEvent({event}); }})()"
        )
        browser.wait(f"{SHOWN} && document.querySelector('#image-name').textContent === '{name}'")
        assert stub.answers[-1]["source_class"]["name"] == "4"
    assert browser.complaints == []


def test_script_in_names_stays_text(browser: Browser, stub: PageStub) -> None:
    stub.class_names = [f"{k} {HOSTILE}" for k in range(10)]

    def hostile(answer: dict[str, Any]) -> None:
        answer["exemplar"]["names"] = [HOSTILE]
        answer["request_id"] = answer["model"] = HOSTILE

    stub.alter = hostile
    explain_sample(browser, stub)
    assert text(browser, "#headline").count(HOSTILE) == 2
    assert HOSTILE in text(browser, "#facts")
    assert browser.evaluate("document.querySelectorAll('img, main script').length") == 0
    assert browser.evaluate("document.title").startswith("What would change")
    assert browser.complaints == []
    stub.refusals = [(400, HOSTILE)]
    take_sample(browser, 1)
    browser.wait("!document.querySelector('#message').hidden")
    assert text(browser, "#message-text") == HOSTILE
    assert browser.evaluate("document.querySelectorAll('img, main script').length") == 0


def test_what_did_not_flip_is_called_no_counterfactual(browser: Browser, stub: PageStub) -> None:
    explain_sample(browser, stub)
    set_value(browser, "#target", "5", "change")
    browser.wait(f"document.querySelector('#case').dataset.status === 'not_flipped' && {SHOWN}")
    assert text(browser, "#headline") == "3, not 5"
    assert text(browser, "#says") == stub.answers[-1]["status_text"]
    assert text(browser, "#badge") == "Not a counterfactual"
    assert text(browser, "#says").startswith("Not a counterfactual")
    assert text(browser, "#tile-counterfactual figcaption span") == "Nearest point"
    assert "not a counterfactual" in text(browser, "#tile-counterfactual small")
    assert is_hidden(browser, "#to-flip")
    assert browser.evaluate("document.querySelectorAll('.flip, .flip-label').length") == 0
    style = browser.evaluate(
        "getComputedStyle(document.querySelector('#tile-counterfactual .frame')).outlineStyle"
    )
    assert style == "dashed"
    assert browser.complaints == []


@pytest.mark.parametrize("status", ["non_finite", "rejected"])
def test_nothing_to_show_is_said(browser: Browser, stub: PageStub, status: str) -> None:
    def empty(answer: dict[str, Any]) -> None:
        answer |= {"status": status, "t_flip": None, "bracket": [None, None], "code": None}
        answer |= {"path": {"t": [], "probabilities": []}, "frames": None, "reached_class": None}
        answer["probabilities_counterfactual"] = [None] * 10
        answer["images"] = {"image": answer["images"]["image"]}

    stub.alter = empty
    explain_sample(browser, stub)
    assert is_hidden(browser, "#tile-saliency")
    assert is_hidden(browser, "#path-section")
    assert text(browser, "#says")
    assert browser.complaints == []


def test_busy_server_is_asked_again(browser: Browser, stub: PageStub) -> None:
    stub.refusals = [(503, 1.0), (503, 30.0)]
    browser.open(stub.url)
    take_sample(browser)
    browser.wait("/server is busy/.test(document.querySelector('#message-text').textContent)")
    browser.wait("/in (29|30) s/.test(document.querySelector('#message-text').textContent)")
    assert is_hidden(browser, "#shown")
    browser.evaluate("document.querySelector('#retry').click()")
    browser.wait(SHOWN)
    assert is_hidden(browser, "#message")
    assert len(stub.questions) == 3


def test_stopping_leaves_the_last_answer(browser: Browser, stub: PageStub) -> None:
    explain_sample(browser, stub)
    said = text(browser, "#headline")
    stub.delay = 1.0
    take_sample(browser, 3)
    browser.wait("!document.querySelector('#working').hidden")
    assert browser.evaluate("document.querySelector('main').getAttribute('aria-busy')") == "true"
    browser.evaluate("document.querySelector('#cancel').click()")
    time.sleep(1.3)
    assert text(browser, "#headline") == said
    assert is_hidden(browser, "#working")
    assert browser.complaints == []


def test_the_last_of_two_questions_wins(browser: Browser, stub: PageStub) -> None:
    browser.open(stub.url)
    stub.delay = 0.5
    take_sample(browser, 0)
    browser.wait("!document.querySelector('#working').hidden")
    stub.delay = 0.0
    take_sample(browser, 4)
    browser.wait(SHOWN)
    time.sleep(0.8)
    assert text(browser, "#image-name") == "04_4_as_9"
    assert text(browser, "#headline").startswith("4 ")


def test_refusals_and_lost_servers_are_said(
    browser: Browser, stub: PageStub, tmp_path: Path
) -> None:
    bad = tmp_path / "no image.png"
    bad.write_bytes(b"no image")
    browser.open(stub.url)
    browser.wait("document.querySelectorAll('#samples button').length")
    browser.choose_file("#file", bad)
    browser.wait("!document.querySelector('#message').hidden")
    assert text(browser, "#message-text") == "image: not an image that can be read"
    assert text(browser, "#message-detail") == "Request stub-2"
    browser.evaluate("globalThis.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    take_sample(browser)
    browser.wait("/cannot be reached/.test(document.querySelector('#message-text').textContent)")


def test_a_token_is_asked_for_and_sent(browser: Browser, stub: PageStub) -> None:
    stub.token = "open sesame"
    browser.open(stub.url)
    browser.wait("!document.querySelector('#token-form').hidden")
    set_value(browser, "#token", "wrong")
    browser.evaluate("document.querySelector('#token-form button').click()")
    browser.wait("!document.querySelector('#token-form').hidden")
    set_value(browser, "#token", "open sesame")
    browser.evaluate("document.querySelector('#token-form button').click()")
    take_sample(browser)
    browser.wait(SHOWN)


def test_report_and_numbers_are_saved(browser: Browser, stub: PageStub, downloads: Path) -> None:
    explain_sample(browser, stub)
    for button, name in (("report", "00_3_as_8_report.html"), ("json", "00_3_as_8.json")):
        browser.evaluate(f"document.querySelector('#save-{button}').click()")
        end = time.monotonic() + 20
        while not (downloads / name).is_file():
            assert time.monotonic() < end, sorted(downloads.iterdir())
            time.sleep(0.05)
    assert "For research, not for diagnosis" in (downloads / "00_3_as_8_report.html").read_text()
    assert json.loads((downloads / "00_3_as_8.json").read_text()) == stub.answers[-1]
    assert browser.complaints == []


@pytest.mark.parametrize("state", ["empty", "flipped", "error"])
def test_narrow_window_does_not_scroll_sideways(
    browser: Browser, stub: PageStub, state: str
) -> None:
    stub.class_names = [f"a_very_long_class_name_without_any_space_{k}" for k in range(10)]
    if state == "error":
        stub.refusals = [(400, "an_error_without_a_space_" * 8)]
    browser.open(stub.url, width=360, height=740, mobile=True)
    browser.wait("document.querySelectorAll('#samples button').length")
    if state != "empty":
        take_sample(browser)
        browser.wait(SHOWN if state == "flipped" else "!document.querySelector('#message').hidden")
    assert browser.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    if state == "flipped":
        place = "document.querySelector('#case').getBoundingClientRect().top"
        browser.wait(f"{place} < 0.6 * innerHeight")


@pytest.mark.parametrize("dark", [False, True])
def test_both_colour_schemes_are_drawn(
    browser: Browser, stub: PageStub, tmp_path: Path, dark: bool
) -> None:
    explain_sample(browser, stub, dark=dark)
    browser.screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as opened:
        shot = np.asarray(opened.convert("RGB")).astype(int)
    corner = shot[3, 3]
    assert corner.mean() < 60 if dark else corner.mean() > 200
    assert (np.abs(shot - corner).max(axis=2) > 30).mean() > 0.05
    # Text against what it lies on: WCAG AA wants 4.5 to 1.
    for name in ("ink", "soft", "source", "target", "warn"):
        assert contrast(browser, name, "warn-well" if name == "warn" else "card") >= 4.5, name


def contrast(browser: Browser, first: str, second: str) -> float:
    """Contrast of two of the page's colours, as WCAG 2.2 defines it."""
    light = []
    for name in (first, second):
        style = f"getComputedStyle(document.documentElement).getPropertyValue('--{name}')"
        value = browser.evaluate(style).strip()
        parts = np.array([int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_everything_has_a_name_for_readers_of_the_screen(browser: Browser, stub: PageStub) -> None:
    explain_sample(browser, stub)
    named = browser.accessible_names()
    acted = [(role, name) for role, name in named if role in ("button", "slider", "combobox")]
    assert all(name.strip() for _, name in acted), acted
    names = [name for _, name in acted]
    assert {"Sample 00_3_as_8", "Target class", "Map opacity", "Play"} <= {
        re.sub(r"\s\d+ %$", "", name.strip()) for name in names
    }
    pictures = [name for role, name in named if role in ("image", "img", "graphics-document")]
    assert "Counterfactual" in pictures
    assert any(name.startswith("The classifier reads") for name in pictures)


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """Address of the real service with the bundled models."""
    command = [sys.executable, "-m", "cae_fast", "serve", "--demo", "--port", "0", "--threads", "1"]
    started = subprocess.Popen([*command, "--log", "off"], stderr=subprocess.PIPE, text=True)
    assert started.stderr is not None
    try:
        said = ""
        while "http://" not in said:
            said = started.stderr.readline()
            assert said, f"the service ended: {started.wait()}"
        yield said[said.index("http://") :].strip().rstrip("/") + "/"
    finally:
        started.terminate()
        assert started.wait(timeout=30) == 0
        started.stderr.close()


def test_the_real_service_serves_it(browser: Browser, service: str) -> None:
    browser.open(service)
    for model in ("digits", "blood_cells"):
        browser.wait("document.querySelectorAll('#samples button').length")
        set_value(browser, "#model", model, "change")
        take_sample(browser, 3)
        name = sorted((model_folder(model) / "samples").glob("*.png"))[3].stem
        browser.wait(f"{SHOWN} && document.querySelector('#image-name').textContent === '{name}'")
        assert text(browser, "#badge") == "Flipped"
        assert not is_hidden(browser, "#path-section")
        asked = len(browser.asked)
        set_value(browser, "#position", 0)
        before = pixels(browser, "#tile-frame canvas")
        set_value(browser, "#position", 1)
        assert (pixels(browser, "#tile-frame canvas") != before).any()
        assert position(browser) == 1.0
        assert len(browser.asked) == asked
        browser.evaluate("document.querySelector('#save-report').click()")
        report = browser.downloads / f"{name}_report.html"
        end = time.monotonic() + 20
        while not report.is_file():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert name in report.read_text()
        report.unlink()
    assert browser.complaints == []


def test_the_real_service_answers_errors_the_page_understands(
    browser: Browser, service: str, tmp_path: Path
) -> None:
    bad = tmp_path / "no image.png"
    bad.write_bytes(b"no image")
    browser.open(service)
    browser.wait("document.querySelectorAll('#samples button').length")
    browser.choose_file("#file", bad)
    browser.wait("!document.querySelector('#message').hidden")
    assert "image" in text(browser, "#message-text")
    assert re.fullmatch(r"Request [0-9a-f]{16}", text(browser, "#message-detail"))

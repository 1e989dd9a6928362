# SPDX-License-Identifier: Apache-2.0
"""The service's page in a real browser, against real explanations of the bundled model."""

# Fixtures are imported, and shadowed by the arguments that ask for them.
# ruff: noqa: F401, F811

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
from page_session import (
    HOSTILE,
    SHOWN,
    _stub,
    browser,
    downloads,
    explain_sample,
    is_hidden,
    pixels,
    position,
    set_value,
    stub,
    take_sample,
    text,
)
from page_stub import PAGE, PageStub
from PIL import Image

from cae_fast.colors import color_table
from cae_fast.demo import model_folder

pytestmark = pytest.mark.browser


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
    browser.evaluate("document.querySelector('.bar[data-k=\"5\"]').click()")
    browser.wait(f"document.querySelector('#headline').textContent === '3 → 5' && {SHOWN}")
    assert [question.get("target") for question in stub.questions] == [None, "8", "5"]
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
    set_value(browser, "#target", "0", "change")
    browser.wait(f"document.querySelector('#case').dataset.status === 'not_flipped' && {SHOWN}")
    assert text(browser, "#headline") == "3, not 0"
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


def test_a_second_path_is_said_to_be_one(browser: Browser, stub: PageStub) -> None:
    stub.second_try = True
    explain_sample(browser, stub)
    assert "nearest exemplars" not in text(browser, "#says")
    set_value(browser, "#target", "0", "change")
    browser.wait(f"document.querySelector('#case').dataset.status === 'flipped' && {SHOWN}")
    assert stub.answers[-1]["second_path"]
    assert text(browser, "#says").split() == stub.answers[-1]["status_text"].split()
    assert "from the middle of their class" in text(browser, "#says")

    def astray(answer: dict[str, Any]) -> None:
        answer["reconstructed_class"] = {"index": 7, "name": "7"}

    stub.alter = astray
    explain_sample(browser, stub)
    assert "Decoded from its own codes" not in text(browser, "#says")  # not of a first path
    set_value(browser, "#target", "0", "change")
    browser.wait(f"document.querySelector('#case').dataset.status === 'flipped' && {SHOWN}")
    assert text(browser, "#says").endswith(
        "Decoded from its own codes the image is read as “7”, so the path begins at a code "
        "near by that is read as “3”."
    )
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

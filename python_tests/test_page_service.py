# SPDX-License-Identifier: Apache-2.0
"""The page before busy, refusing and lost servers, and on the real service."""

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
from cae_fast.manifold.paths import DEFAULT_REACH

pytestmark = pytest.mark.browser


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


def test_the_kind_of_map_is_asked_for_and_said(browser: Browser, stub: PageStub) -> None:
    explain_sample(browser, stub)
    pixels = "document.querySelector('#tile-saliency .heat').toDataURL()"
    before = browser.evaluate(pixels)
    assert text(browser, "#map-name") == "Where it changes"
    set_value(browser, "#saliency", "edit", "change")
    browser.wait("document.querySelector('#map-name').textContent.startsWith('Fewest pixels')")
    assert stub.questions[-1]["saliency"] == "edit"
    assert browser.evaluate(pixels) != before
    set_value(browser, "#saliency", "difference", "change")
    browser.wait("document.querySelector('#map-name').textContent === 'Where it changes'")
    assert browser.evaluate(pixels) == before
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
    assert text(browser, "#headline").startswith("4")


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
        browser.evaluate("document.querySelector('#to-exemplar').click()")
        assert position(browser) == pytest.approx(1 / DEFAULT_REACH, abs=1 / 16), "the exemplar"
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

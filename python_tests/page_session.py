# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: fixtures and steps that its tests share."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devtools import Browser
from page_stub import PageStub
from PIL import Image

from cae_fast.demo import model_folder

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

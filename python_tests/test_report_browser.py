# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: it renders, its controls work, nothing is fetched."""

from __future__ import annotations

import http.server
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_cases import HOSTILE, make_explanation

from cae_fast.report import Frames, write_html

pytestmark = pytest.mark.browser

QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
Browse = Callable[..., str]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "page.html"
    explanation = make_explanation(size=32)
    write_html(
        path,
        explanation,
        explanation.images,
        title=f"Report {HOSTILE}",
        exemplar_images=list(explanation.images),
        frames=Frames(explanation.frame_t, explanation.path_images),
    )
    return path


@pytest.fixture(scope="module")
def browse(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Browse:
    profile = tmp_path_factory.mktemp("profile")

    def run(url: str, *flags: str) -> str:
        command = [chromium, *QUIET, f"--user-data-dir={profile}", *flags, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return run


def test_script_runs_names_do_not_and_nothing_is_fetched(browse: Browse, page: Path) -> None:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(page.parent), **kwargs)  # type: ignore[arg-type]

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        dom = browse(f"http://127.0.0.1:{server.server_port}/page.html", "--dump-dom", rules)
    finally:
        server.shutdown()
        server.server_close()
    assert [path for path in asked if path != "/favicon.ico"] == ["/page.html"]
    tools = re.search(r'<div class="tools"[^>]*>', dom)
    assert tools is not None
    assert "hidden" not in tools.group(), "the page's own script did not run"
    assert dom.count("<script>") == 1
    assert dom.count("&lt;script&gt;") >= 6


def test_controls_change_the_overlay(browse: Browse, page: Path, tmp_path: Path) -> None:
    driver = """<script>
      addEventListener("load", () => {
        const set = (name, value) => {
          const input = document.querySelector(`[name=${name}]`);
          input.value = value;
          input.dispatchEvent(new Event(name === "status" ? "change" : "input"));
        };
        set("opacity", "40"); set("threshold", "50"); set("status", "not_flipped");
      });
    </script></body>"""
    # The driver is not the page's own script, so the page's policy has to go for this test.
    text = page.read_text(encoding="utf-8").replace("</body>", driver)
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    driven = tmp_path / "driven.html"
    driven.write_text(text, encoding="utf-8")
    dom = browse(driven.as_uri(), "--dump-dom")
    assert re.search(r'<main class="cae" style="--heat: ?0\.4', dom)
    assert dom.count('<canvas class="heat"') == 3
    cards = re.findall(r'<article class="case (\w+)[^>]*>', dom)
    hidden = re.findall(r'<article class="case (\w+)[^>]* hidden[^>]*>', dom)
    assert set(cards) - set(hidden) == {"not_flipped"}


@pytest.mark.parametrize("dark", [False, True])
def test_page_is_drawn(browse: Browse, page: Path, tmp_path: Path, dark: bool) -> None:
    shot = tmp_path / "shot.png"
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse(page.as_uri(), f"--screenshot={shot}", "--window-size=1000,1600", *flags)
    with Image.open(shot) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    assert pixels.shape == (1600, 1000, 3)
    corner = pixels[5, 5].mean()
    assert corner < 60 if dark else corner > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
    assert (np.abs(pixels.astype(int) - pixels[5, 5].astype(int)).max(axis=2) > 30).mean() > 0.05


def test_narrow_page_does_not_scroll_sideways(browse: Browse, page: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer.html"
    text = page.read_text(encoding="utf-8").replace('"', "&quot;")
    outer.write_text(
        f'<iframe id="f" srcdoc="{text}" style="width:390px;height:800px;border:0"></iframe>'
        "<script>"
        'f.onload = () => document.title = "width " + f.contentDocument.documentElement.scrollWidth'
        "</script>",
        encoding="utf-8",
    )
    dom = browse(outer.as_uri(), "--dump-dom")
    assert "<title>width 390</title>" in dom

# SPDX-License-Identifier: Apache-2.0
"""The page of a manifold in a real browser: it is drawn, reacts, and nothing is fetched."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_workspace import cae_fast, make_workspace
from PIL import Image

pytestmark = pytest.mark.browser

QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
OFFLINE = ("--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND")
Browse = Callable[..., str]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifold")
    workspace = make_workspace(folder)
    done = cae_fast(
        *("manifold", str(workspace.bank), "--out", str(folder / "out"), "--views", "pca,tsne"),
        *("--model", str(workspace.model), "--classifier", str(workspace.classifier)),
        *("--with", str(workspace.images / "0.png"), "--explain", "3"),
    )
    assert done.code == 0, done.err
    return folder / "out" / "index.html"


@pytest.fixture(scope="module")
def browse(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Browse:
    profile = tmp_path_factory.mktemp("profile")

    def run(url: str, *flags: str) -> str:
        command = [chromium, *QUIET, *OFFLINE, f"--user-data-dir={profile}", *flags, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return run


def driven(page: Path, script: str, folder: Path) -> Path:
    """The page with a driver; its policy allows no script but its own, so that has to go."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    path = folder / "driven.html"
    load = f"<script>addEventListener('load', () => {{ {script} }});</script></body>"
    path.write_text(text.replace("</body>", load), encoding="utf-8")
    return path


def test_it_names_no_other_origin_and_its_script_runs(browse: Browse, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert not re.findall(r"url\((?!data:)", text)
    dom = browse(page.as_uri(), "--dump-dom")
    tools = re.search(r'<div class="tools"[^>]*>', dom)
    assert tools is not None
    assert "hidden" not in tools.group(), "the page's own script did not run"


def test_keys_show_the_picture_and_open_the_explanation(
    browse: Browse, page: Path, tmp_path: Path
) -> None:
    script = """
      const map = document.getElementById('map');
      const press = (key) => map.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
      press('ArrowRight'); press('Enter');
    """
    dom = browse(driven(page, script, tmp_path).as_uri(), "--dump-dom")
    hover = re.search(r'<div id="hover" class="hover"(.*?)</div></div>', dom, re.DOTALL)
    assert hover is not None
    assert "hidden" not in hover.group(1).split(">")[0]
    assert "data:image/png;base64," in hover.group(1)
    assert "&lt;b&gt;oval" in dom or "[bold]round" in hover.group(1)
    shown = dom.split('<section id="shown"')[1].split("</section>")[0]
    assert '<article class="case' in shown
    assert "<svg" in shown or "already" in shown


def test_pointer_finds_points_and_opens_them(browse: Browse, page: Path, tmp_path: Path) -> None:
    script = """
      const map = document.getElementById('map');
      const hover = document.getElementById('hover');
      const send = (kind, x, y) => {
        const event = new PointerEvent(kind, {bubbles: true, clientX: x, clientY: y});
        map.dispatchEvent(event);
      };
      const box = map.getBoundingClientRect();
      let hits = 0, opened = 0;
      for (let x = 4; x < box.width; x += 8) for (let y = 4; y < box.height; y += 8) {
        send('pointermove', box.left + x, box.top + y);
        if (hover.hidden) continue;
        hits++;
        send('click', box.left + x, box.top + y);
        if (document.querySelector('#shown .case')) opened++;
      }
      for (const key of document.querySelectorAll('.class-key')) key.click();
      send('pointermove', box.left + box.width / 2, box.top + box.height / 2);
      document.title = `hits ${hits > 10} opened ${opened > 0}`;
    """
    dom = browse(driven(page, script, tmp_path).as_uri(), "--dump-dom")
    assert "<title>hits true opened true</title>" in dom
    keys = re.findall(r'<button[^>]*class="class-key"[^>]*>', dom)
    assert ['aria-pressed="false"' in key for key in keys] == [True] * 3


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_drawn(browse: Browse, page: Path, tmp_path: Path, dark: bool) -> None:
    script = """
      document.querySelector('[name=edges]').click();
      const pick = document.querySelector('[name=view]');
      pick.value = 'tsne'; pick.dispatchEvent(new Event('change'));
    """
    shot = tmp_path / "shot.png"
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    made = driven(page, script, tmp_path).as_uri()
    browse(made, f"--screenshot={shot}", "--window-size=1000,1400", *flags)
    with Image.open(shot) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    corner = pixels[5, 5].mean()
    assert corner < 60 if dark else corner > 200
    for color in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):  # the first three classes
        assert (np.abs(pixels - color).max(axis=2) < 40).sum() > 60

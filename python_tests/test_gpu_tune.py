# SPDX-License-Identifier: Apache-2.0
"""The command that times tiles and writes their table: what it writes of made-up times."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

GPU = Path(__file__).resolve().parent.parent / "bench" / "gpu"
ROW = re.compile(r"    \{ConvPath::k\w+, ConvKind::k\w+(, \d+){5}, \{\d+, \d+\}\},")
LAYER = "ConvPath::kWgmma, ConvKind::kConv3x3, 256, 256, 64, 64"


@pytest.fixture
def tune() -> Iterator[Any]:
    """The command's module; it imports its neighbours by bare names."""
    known = set(sys.modules)
    sys.path.insert(0, str(GPU))
    try:
        yield importlib.import_module("tune")
    finally:
        sys.path.remove(str(GPU))
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(GPU)):
                del sys.modules[name]


def test_the_quickest_tile_is_taken(tune: Any) -> None:
    """From the batch on at which it is quicker by more than noise; the first from one image on."""
    timed = {
        "16": {"128x64": 30.0, "128x128": 20.0, "128x256": 21.0},  # in any order
        "2": {"128x64": 10.0, "128x128": 12.0},
        "4": {"128x64": 15.0, "64x128": 14.9},  # less than a hundredth: as before
        "8": {"128x64": 15.0, "128x128": 14.0},
        "32": {"128x128": 40.0},  # the others did not run
        "64": {"128x128": 80.0, "128x256": 70.0},
    }
    assert tune.steps(timed) == [(1, "128x64"), (8, "128x128"), (64, "128x256")]
    # Of equal ones the first of the list, the smaller.
    assert tune.steps({"1": {"128x128": 5.0, "64x128": 5.0}}) == [(1, "64x128")]
    assert tune.steps({"1": {}, "2": {"128x128": 1.0}}) == [(1, "128x128")]
    assert tune.steps({}) == []


def test_the_table_is_what_the_build_reads(tune: Any) -> None:
    timings = {LAYER: {"1": {"64x128": 1.0, "128x128": 2.0}, "2": {"64x128": 2.0, "128x128": 1.0}}}
    text = tune.table_text('measured on "a" GPU\\, x', 132, timings)
    assert text.splitlines()[4:] == [
        '"measured on ?a? GPU?, x",',
        "132,",
        "{",
        f"    {{{LAYER}, 1, {{64, 128}}}},",
        f"    {{{LAYER}, 2, {{128, 128}}}},",
        "}",
    ]
    assert tune.layer_name("wgmma, clusters of 2", (0, 256, 256, 64, 64)) == LAYER
    with pytest.raises(ValueError, match="no layer was timed"):
        tune.table_text("measured", 132, {})
    # The one that is there has the same form.
    lines = tune.TABLE.read_text(encoding="utf-8").splitlines()
    assert lines[:4] == text.splitlines()[:4]
    assert lines[6] == "{"
    assert lines[-1] == "}"
    assert all(ROW.fullmatch(line) for line in lines[7:-1])
    assert len(lines) > 9


def test_a_run_is_written_down(tune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file of gpu_check.sh; a run without the step leaves the table as it is."""
    monkeypatch.setattr(tune, "ROOT", tmp_path)
    monkeypatch.setattr(tune, "TABLE", tmp_path / "table.inc")
    data = {
        "source": "measured on a GPU, 2026-01-02, commit abc",
        "multiprocessors": 114,
        "timings": {LAYER: {"1": {"64x128": 3.0, "128x128": 2.0}}},
    }
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"steps": [{"name": "build"}, {"name": "tiles", "data": data}]}))
    monkeypatch.setattr(sys, "argv", ["tune.py", "--from", str(results)])
    tune.main()
    written = tune.TABLE.read_text(encoding="utf-8")
    assert written == tune.table_text(data["source"], 114, data["timings"])
    assert tune.gains(data["timings"]) == "1 choices, another tile takes up to 1.50x"
    results.write_text(json.dumps({"steps": []}))
    with pytest.raises(SystemExit, match="the table stays as it is"):
        tune.main()
    assert tune.TABLE.read_text(encoding="utf-8") == written


def test_without_a_gpu_it_says_so() -> None:
    pytest.importorskip("torch")
    before = (GPU.parents[1] / "csrc" / "engine" / "gpu_tile_table.inc").read_bytes()
    code = "import os, runpy; os.environ['CUDA_VISIBLE_DEVICES'] = ''; "
    code += f"import sys; sys.path.insert(0, {str(GPU)!r}); sys.argv = ['tune.py']; "
    code += f"runpy.run_path({str(GPU / 'tune.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (77, "no GPU\n"), done.stderr
    assert (GPU.parents[1] / "csrc" / "engine" / "gpu_tile_table.inc").read_bytes() == before

# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: arithmetic counted, peers that agree, figures that follow, the verb."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_workspace import cae_fast

import cae_fast as cf
from cae_fast import _backend
from cae_fast.benchmark import cases, limits, operations, results, suite
from cae_fast.benchmark.gemm import gemm_peak
from cae_fast.benchmark.machine import cpu_name
from cae_fast.benchmark.peers import PeerShop
from cae_fast.benchmark.race import Race, timing
from cae_fast.benchmark.tasks import explain_task, network_task, search_variants
from cae_fast.testing import relative_error, toy_model

GIVEN = {kind: cases.Case(kind, "given", 16, 1) for kind in cases.KINDS}
SHORT = limits.Limits(case_s=0.0, least_rounds=1, compile_s=120.0)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A suite sets the threads of the process."""
    torch = sys.modules.get("torch")
    ours = _backend.get_num_threads()
    theirs = None if torch is None else torch.get_num_threads()
    yield
    cf.set_num_threads(ours)
    if torch is not None:
        torch.set_num_threads(theirs)


@pytest.fixture
def model() -> cf.CAE:
    return toy_model()


@pytest.mark.parametrize(
    ("part", "gflop"),
    [
        (operations.decode, 112.9),
        (operations.encode_individual, 67.8),
        (operations.encode_class, 12.5),
        (operations.authors_procedure, 2 * (67.8 + 12.5) + 6 * 112.9),
    ],
)
def test_reference_arithmetic_is_that_of_the_design(part: Any, gflop: float) -> None:
    assert part(cf.CAEConfig()).reference / 1e9 == pytest.approx(gflop, abs=0.07)


def test_executed_arithmetic_by_hand() -> None:
    # GFLOP of the layers at 256 pixels: twelve 3x3 at 1.208, both upsamplings at 2.030, 7x7 direct.
    decode = operations.decode(cf.CAEConfig())
    by_hand = 12 * 4.832 / 4 + 2 * 26.844 / 25 * 121 / 64 + 1.233
    assert decode.executed / 1e9 == pytest.approx(by_hand, rel=1e-3)
    shared = operations.decode(cf.CAEConfig(), shared_first=True)
    assert (decode.executed - shared.executed) / 1e9 == pytest.approx(4.832 / 4, rel=1e-3)
    assert shared.reference == decode.reference
    # Two 7x7, the layers at stride 2 by 6.25 of 16 taps, twelve 3x3.
    strided = (4 * 4.295 + 2.147 + 0.537) * 6.25 / 16
    by_hand = 2 * 1.233 + strided + 12 * 4.832 / 4
    assert operations.encode(cf.CAEConfig()).executed / 1e9 == pytest.approx(by_hand, rel=1e-3)


def test_counted_layers_hold_every_weight() -> None:
    """At one output pixel per layer a multiply-add is a weight: none is forgotten."""
    config = toy_model(channels=3, num_blocks=2).config
    pixels = config.image_size**2

    def weights(*parts: str) -> float:
        total = 0.0
        for name, shape in config.tensor_shapes().items():
            if name.split(".")[0] not in parts or not name.endswith("weight"):
                continue
            outputs = {"up0": 4, "conv1": 4, "conv2": 16, "conv3": 64, "conv4": 256, "head": 0}
            level = 16 if ".block" in name else outputs.get(name.split(".")[1], 1)
            linear = level == 0 or parts == ("modulation",)
            total += 2 * np.prod(shape) * (1 if linear else pixels / level)
        return total

    assert operations.encode_class(config).reference == weights("class_encoder")
    assert operations.encode_individual(config).reference == weights("individual_encoder")
    decoder = weights("decoder") + weights("modulation")
    assert operations.decode(config).reference == decoder


def test_an_explanation_is_its_parts(model: cf.CAE) -> None:
    whole = operations.explain(model.config, 5)
    encode, decode = operations.encode(model.config), operations.decode(model.config)
    assert whole.reference == encode.reference + 5 * decode.reference
    one = operations.explain(model.config, 1)
    assert one.executed == pytest.approx(encode.executed + decode.executed)
    assert (one * 3).executed == 3 * one.executed


def test_race_alternates_and_counts() -> None:
    calls: list[str] = []
    race = Race({name: lambda name=name: calls.append(name) for name in "ab"})  # type: ignore[misc]
    race.warm_up()
    assert calls == ["a", "a", "b", "b"]
    race.run(0, 3)
    # Short calls are made once before they are timed.
    assert calls[4:] == ["a", "a", "b", "b"] * 3
    assert [len(race.seconds[name]) for name in "ab"] == [3, 3]
    assert timing([3.0, 1.0, 2.0]) == {
        "median_s": 2.0,
        "fastest_s": 1.0,
        "slowest_s": 3.0,
        "rounds": 3,
    }


@pytest.mark.parametrize("kind", ["encode", "decode"])
def test_peers_agree(model: cf.CAE, kind: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    task = network_task(kind, model, 3)
    expected = task.ours()
    with PeerShop(1, compile_s=0.0) as shop:
        case = cases.Case(kind, "given", 16, 3)
        for name in ("eager", "ONNX Runtime", "OpenVINO"):
            if name == "OpenVINO":
                pytest.importorskip("openvino")
            program, note = shop.build(name, case, task)
            assert (note in {"NCHW", "channels_last"}) == (name == "eager")
            for value, wanted in zip(program(), expected, strict=True):
                assert value.shape == wanted.shape
                assert relative_error(value, wanted) < 1e-4


@pytest.mark.slow
def test_compiled_peer_agrees(model: cf.CAE) -> None:
    pytest.importorskip("torch")
    task = network_task("decode", model, 1)
    with PeerShop(1, compile_s=300.0) as shop:
        program, _ = shop.build("torch.compile", GIVEN["decode"], task)
        assert relative_error(program()[0], task.ours()[0]) < 1e-4
        with pytest.raises(limits.NotRun, match="batch 1 only"):
            shop.build("torch.compile", cases.Case("decode", "given", 16, 8), task)


def test_compiling_has_a_limit(model: cf.CAE) -> None:
    pytest.importorskip("torch")
    with (
        PeerShop(1, compile_s=0.05) as shop,
        pytest.raises(limits.NotRun, match=r"compiling did not end in .* of the 0 s for all"),
    ):
        shop.build("torch.compile", GIVEN["decode"], network_task("decode", model, 1))


def test_missing_and_failing_peers_are_reported(
    model: cf.CAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    task = network_task("decode", model, 1)

    def broken(*_: object) -> None:
        raise RuntimeError("no\nway")

    with PeerShop(1, 0) as shop:
        monkeypatch.setattr("cae_fast.benchmark.torch_peers.eager", broken)
        monkeypatch.setattr("cae_fast.benchmark.torch_peers.faster_layout", lambda *_: "NCHW")
        with pytest.raises(limits.NotRun, match="failed: RuntimeError: no way"):
            shop.build("eager", GIVEN["decode"], task)
        monkeypatch.setattr("cae_fast.benchmark.peers.installed", lambda _: False)
        with pytest.raises(limits.NotRun, match="PyTorch is not installed"):
            shop.build("eager", GIVEN["decode"], task)


def test_a_peer_that_computes_something_else_ends_the_run(
    model: cf.CAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_: object, name: str, case: cases.Case, task: Any) -> Any:
        return lambda: tuple(array * 1.01 for array in task.ours()), ""

    monkeypatch.setattr(PeerShop, "build", wrong)
    with PeerShop(1, 0) as shop:
        made = suite.Suite(1, SHORT, shop, peers=["eager"], model=model)
        with pytest.raises(suite.Disagreement, match=r"eager differs from cae_fast by 0\.01"):
            made.measure(GIVEN["decode"])


def test_every_explanation_flips_where_it_is_meant_to(model: cf.CAE) -> None:
    task = explain_task(model, 2, search_variants(full=True))
    assert {"bisection", "bisection 0.2"} <= set(task.variants)
    for name, explain in task.variants.items():
        result = explain()
        assert list(result.status) == ["flipped"] * 2, name
        low, high = result.bracket[0]
        assert 0 < low < high < 1
        assert (high - low) == pytest.approx(1 / 8 if name.endswith("0.2") else 1 / 256)
        np.testing.assert_array_equal(result.exemplar[0], result.exemplar[1])


def test_both_searches_are_measured_where_there_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    def explain(self: Any, images: Any, tolerance: float = 1 / 256, search: str = "x") -> None:
        """As `Explainer.explain` with a choice of searches."""

    monkeypatch.setattr(cf.Explainer, "explain", explain)
    found = search_variants(full=True)
    assert found == {
        f"{search}{name}": {"tolerance": tolerance, "search": search}
        for search in ("bisection", "margin")
        for name, tolerance in (("", 1 / 256), (" 0.2", 0.2))
    }
    rows = {f"explain reference 256 x1, {name}" for name in found}
    assert {t.row for t in cases.TARGETS if t.row.startswith("explain")} <= rows


def test_what_does_not_fit_is_left_out() -> None:
    expected = {"cae_fast": 1.0, "eager": 10.0, "ONNX Runtime": 9.0, "OpenVINO": 8.0}
    assert limits.that_fit(expected, 100.0) == (["eager", "ONNX Runtime", "OpenVINO"], {})
    kept, out = limits.that_fit(expected, 45.0)
    assert kept == ["eager", "ONNX Runtime"]
    assert out == {"OpenVINO": "takes too long here, about 8 s a call"}
    with pytest.raises(limits.NotRun, match="about 1 s a round without any peer"):
        limits.that_fit(expected, 1.5)


def test_pace_goes_by_what_was_measured() -> None:
    pace, case = limits.Pace(), cases.Case("decode", "reference", 64, 8)
    assert pace.expected(case, "OpenVINO", 8, 5.0) == 5.0
    pace.note(case, "eager", 2.0, 4)
    assert pace.expected(case, "OpenVINO", 8, 5.0) == 4.0
    pace.note(case, "OpenVINO", 1.0, 4)
    assert pace.expected(case, "OpenVINO", 8, 5.0) == 2.0
    assert pace.expected(case, "cae_fast", 8, 5.0) == 5.0


def test_cases_hold_the_sizes_and_batches_of_the_issue() -> None:
    every = cases.all_cases()
    assert len({case.name for case in every}) == len(every)
    for kind in cases.KINDS:
        for size in (64, 128, 256):
            for batch in (1, 8, 32):
                assert cases.Case(kind, "reference", size, batch) in every
    assert every[: len(cases.quick_cases())] == cases.quick_cases()
    names = {case.name for case in cases.quick_cases()}
    assert all(target.row.partition(",")[0] in names for target in cases.TARGETS)


def peak_report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"cpu": "a", "threads": 2, "isa": "avx2", "versions": {"PyTorch": None, "NumPy": "2"}}
    return {"machine": machine, "peak": {"gflops": 100.0, "by": "x"}, "seconds": 1.0, "rows": rows}


def row(name: str = "decode reference 256 x1", ours: float = 0.1) -> dict[str, Any]:
    peers = {
        "eager": timing([0.8]),
        "torch.compile": {"not_run": "no compiler"},
        "ONNX Runtime": timing([0.4]),
        "OpenVINO": timing([0.3]),
    }
    numbers = {"gflop": 20.0, "gflop_floor": 5.0}
    return {"name": name, "kind": "decode", "ours": timing([ours]), "peers": peers, **numbers}


def test_figures_follow_from_times() -> None:
    done = results.completed(peak_report([row()]))
    (found,) = done["rows"]
    assert found["ratios"] == pytest.approx(
        {"eager": 8, "ONNX Runtime": 4, "OpenVINO": 3, "library": 3}
    )
    assert found["gflops"] == pytest.approx(200)
    assert found["share_of_peak"] == pytest.approx(2)
    assert found["floor_s"] == pytest.approx(0.05)
    verdicts = {v["target"]: (v["measured"], v["met"]) for v in done["targets"]}
    assert verdicts["decode against eager"] == (pytest.approx(8), True)
    assert verdicts["decode against the best library"] == (pytest.approx(3), False)
    assert verdicts["encode (both encoders) against eager"] == (None, False)
    (cells,) = results.table(done)
    assert len(cells) == len(results.COLUMNS)
    assert cells[3] == "not run"
    assert results.left_out(done) == ["torch.compile: no compiler (decode reference 256 x1)"]
    assert "not installed: PyTorch" in results.heading(done)[1]
    json.dumps(done, allow_nan=False)


def test_a_case_left_out_stays_in_the_table() -> None:
    report = peak_report([{"name": "decode x", "kind": "decode", "not_run": "too long"}])
    (cells,) = results.table(report)
    assert cells[:2] == ("decode x", "not run")
    assert results.left_out(report) == ["the case: too long (decode x)"]


def test_fallen_ratios_are_found_in_former_results() -> None:
    former = results.markdown_table(
        results.COLUMNS, results.table(peak_report([row(), row("encode y")]))
    )
    ratios = results.eager_ratios(former)
    assert ratios == {"decode reference 256 x1": 8.0, "encode y": 8.0}
    now = peak_report([row(ours=0.11), row("encode y", ours=0.2), row("new", ours=9.0)])
    assert results.fallen(ratios, now) == ["encode y: 4.00 times eager, was 8.00"]


def test_unsteady_rounds_are_named() -> None:
    slow = row("decode z")
    slow["peers"]["eager"] = timing([0.1, 0.4, 0.5])
    assert results.unsteady(peak_report([row(), slow])) == ["decode z"]


def test_peak_is_measured() -> None:
    peak = gemm_peak(1, 0.1)
    assert 0.1 < peak["gflops"] < 1e5
    assert peak["by"].split(",")[0] in {"NumPy", "PyTorch"}


def test_name_of_the_processor(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name\t: A: B 3000 \n", encoding="utf-8")
    assert cpu_name(file) == "A: B 3000"
    assert cpu_name(tmp_path / "none") != ""


def test_verb_measures_a_model(tmp_path: Path, model: cf.CAE) -> None:
    model.save(tmp_path / "model.safetensors")
    file = str(tmp_path / "model.safetensors")
    done = cae_fast(
        *("bench", "--quick", "--json", "--threads", "1", "--seconds", "0"), *("--model", file)
    )
    assert done.code == 0
    report = done.json
    assert report["machine"]["threads"] == 1
    assert report["peak"]["gflops"] > 0
    names = {entry["name"] for entry in report["rows"]}
    assert {"decode given 16 x1", "encode given 16 x1"} <= names
    assert "explain given 16 x1, bisection" in names
    for entry in report["rows"]:
        assert 0 < entry["ours"]["fastest_s"] <= entry["ours"]["median_s"]
        assert entry["gflops"] > 0
        if "not_run" not in entry["peers"]["eager"]:
            assert entry["ratios"]["eager"] > 0


def test_verb_prints_tables(tmp_path: Path, model: cf.CAE) -> None:
    model.save(tmp_path / "model.safetensors")
    done = cae_fast(
        *("bench", "--quick", "--threads", "1", "--seconds", "0"),
        *("--model", str(tmp_path / "model.safetensors")),
    )
    assert done.code == 0
    assert "GEMM peak" in done.out
    assert "explain given 16 x1, bisection" in done.out
    assert "OpenVINO  " not in done.out  # no column for who was not asked


def test_verb_without_torch_measures_ours_alone(tmp_path: Path, model: cf.CAE) -> None:
    model.save(tmp_path / "model.safetensors")
    code = (
        "import importlib.util as u, sys\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else found(name, *rest)\n"
        "from cae_fast.cli.app import app\n"
        "try:\n"
        "    app(sys.argv[1:])\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    words = ["bench", "--quick", "--json", "--seconds", "0", "--model"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, str(tmp_path / "model.safetensors")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["peers"]["eager"]["not_run"] for row in rows} == {"PyTorch is not installed"}
    assert all(row["ours"]["median_s"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("options", "text"),
    [(["--threads", "0"], "--threads"), (["--seconds", "-1"], "--seconds"), (["more"], "more")],
)
def test_verb_refuses_wrong_options(options: list[str], text: str) -> None:
    program = [sys.executable, "-m", "cae_fast", "bench", *options]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_verb_refuses_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no")
    done = subprocess.run(
        [sys.executable, "-m", "cae_fast", "bench", "--model", str(tmp_path / "x.safetensors")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)

# SPDX-License-Identifier: Apache-2.0
"""Engine files: only what was built, unchanged, gets past; no TensorRT is needed to refuse."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import cae_fast as cf
from cae_fast.engine_files import (
    Manifest,
    manifest_path,
    read_engine,
    read_manifest,
    signing_key,
    write_engine,
)
from cae_fast.errors import EngineError

PLAN = bytes(range(256)) * 20
KEY = b"k" * 32
MANIFEST = Manifest(
    part="classifier",
    flavour="tensorrt_rtx",
    version="1.7.1",
    gpus=("sm86", "sm89"),
    precision="fp16",
    phases=False,
    max_batch=4,
    model_sha256="a" * 64,
    classifier_sha256=None,
    class_names=("x", "y"),
    inputs={"images": ["batch", 1, 16, 16]},
    outputs={"logits": ["batch", 2]},
)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    write_engine(tmp_path / "e.engine", PLAN, MANIFEST)
    return tmp_path / "e.engine"


def edited(engine: Path, **values: Any) -> None:
    """Changes the manifest; None removes a field."""
    path = manifest_path(engine)
    said = json.loads(path.read_text())
    said |= values
    said = {name: said[name] for name in said if values.get(name, "") is not None}
    path.write_text(json.dumps(said))


def test_what_was_written_comes_back(engine: Path) -> None:
    plan, manifest = read_engine(engine)
    assert plan == PLAN
    assert manifest == dataclasses.replace(MANIFEST, size_bytes=len(PLAN), sha256=manifest.sha256)
    for path in (engine, manifest_path(engine)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.name for path in engine.parent.iterdir()) == ["e.engine", "e.engine.json"]


@pytest.mark.parametrize("at", [0, 1, len(PLAN) // 2, len(PLAN) - 1])
def test_one_changed_bit_is_refused(engine: Path, at: int) -> None:
    data = bytearray(PLAN)
    data[at] ^= 1
    engine.write_bytes(data)
    with pytest.raises(EngineError, match="sha256 is not the manifest's"):
        read_engine(engine)


@pytest.mark.parametrize("size", [0, 1, len(PLAN) - 1, len(PLAN) + 1])
def test_truncated_and_lengthened_are_refused(engine: Path, size: int) -> None:
    engine.write_bytes((PLAN + b"x")[:size])
    with pytest.raises(EngineError, match=rf"{size} bytes, its manifest says {len(PLAN)}"):
        read_engine(engine)


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.engine").write_bytes(PLAN)
    with pytest.raises(EngineError, match="no manifest"):
        read_engine(tmp_path / "f.engine")
    with pytest.raises(EngineError, match="no such engine file"):
        read_engine(tmp_path / "g.engine")


@pytest.mark.parametrize("content", [b"", b"garbage", b"[1]", b"{}", b"[" * 100_000, b"\xff\xfe"])
def test_damaged_manifest_is_refused(engine: Path, content: bytes) -> None:
    manifest_path(engine).write_bytes(content)
    with pytest.raises(EngineError, match=r"e\.engine\.json"):
        read_engine(engine)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"format_version": 2}, "format 2, expected 1"),
        ({"part": 3}, "'part'"),
        ({"max_batch": True}, "'max_batch'"),
        ({"sha256": None}, "'sha256'"),
        ({"more": 1}, "'more'"),
        ({"gpus": [89]}, "gpus must be texts"),
        ({"sha256": "é" * 64}, "'sha256'"),
        ({"sha256": "A" * 64}, "'sha256'"),
        ({"sha256": "a" * 63}, "'sha256'"),
        ({"hmac_sha256": "é" * 64}, "'hmac_sha256'"),
        ({"hmac_sha256": 3}, "'hmac_sha256'"),
        ({"build_seconds": float("nan")}, "not a JSON object"),
        ({"build_seconds": float("inf")}, "not a JSON object"),
    ],
)
def test_wrong_fields_are_refused(engine: Path, values: dict[str, Any], word: str) -> None:
    edited(engine, **values)
    with pytest.raises(EngineError, match=word):
        read_engine(engine)
    with pytest.raises(EngineError, match=f"{word}|is not signed"):
        read_engine(engine, key=KEY)


def test_number_beyond_floats_is_refused(engine: Path) -> None:
    path = manifest_path(engine)
    path.write_text(path.read_text().replace('"build_seconds": 0.0', '"build_seconds": 1e999'))
    for key in (None, KEY):
        with pytest.raises(EngineError, match="not a JSON object"):
            read_engine(engine, key=key)


def test_writable_by_others_is_refused(engine: Path) -> None:
    for path in (engine, manifest_path(engine)):
        path.chmod(0o622)
        with pytest.raises(EngineError, match="others may write"):
            read_engine(engine)
        path.chmod(0o600)
    read_engine(engine)


def test_pipe_is_refused_without_waiting(engine: Path) -> None:
    manifest_path(engine).unlink()
    os.mkfifo(manifest_path(engine))
    with pytest.raises(EngineError, match="no manifest"):
        read_engine(engine)


def test_signature(tmp_path: Path) -> None:
    """Who can write both files cannot sign: with a key, everything that is said is covered."""
    engine = tmp_path / "e.engine"
    write_engine(engine, PLAN, MANIFEST, key=KEY)
    assert read_engine(engine, key=KEY)[0] == PLAN
    with pytest.raises(EngineError, match="does not bear the signature"):
        read_engine(engine, key=b"other" * 8)
    edited(engine, gpus=["sm80"])
    with pytest.raises(EngineError, match="does not bear the signature"):
        read_engine(engine, key=KEY)
    write_engine(engine, PLAN, MANIFEST)
    with pytest.raises(EngineError, match="is not signed"):
        read_engine(engine, key=KEY)


def test_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    monkeypatch.delenv("CAE_ENGINE_KEY_FILE", raising=False)
    assert signing_key() is None
    path.write_bytes(KEY)
    path.chmod(0o644)
    monkeypatch.setenv("CAE_ENGINE_KEY_FILE", str(path))
    with pytest.raises(EngineError, match="others can read this engine key"):
        signing_key()
    path.chmod(0o600)
    assert signing_key() == KEY
    path.write_bytes(b"short")
    with pytest.raises(EngineError, match="5 bytes, expected at least 16"):
        signing_key()
    with pytest.raises(EngineError, match="cannot be read"):
        signing_key(tmp_path / "absent")


def test_key_names_everything_an_engine_depends_on() -> None:
    changes: list[dict[str, Any]] = [
        {"part": "decoder"},
        {"flavour": "tensorrt"},
        {"version": "1.7.2"},
        {"gpus": ("sm89",)},
        {"precision": "fp32"},
        {"phases": True},
        {"max_batch": 8},
        {"model_sha256": "b" * 64},
        {"classifier_sha256": "c" * 64},
        {"built_by": "9.9"},
    ]
    keys = {dataclasses.replace(MANIFEST, **change).key for change in changes}
    assert len(keys | {MANIFEST.key}) == len(changes) + 1
    assert dataclasses.replace(MANIFEST, build_seconds=9.0, layers=3).key == MANIFEST.key


def test_full_disk_leaves_nothing_that_would_be_run(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is new, its manifest could not be written: together they are refused."""
    written: list[Path] = []
    write = Path.write_bytes

    def full_at_second(self: Path, data: Any) -> int:
        written.append(self)
        if len(written) > 1:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full_at_second)
    with pytest.raises(OSError, match="No space left"):
        write_engine(engine, PLAN[::-1], MANIFEST)
    with pytest.raises(EngineError, match="sha256 is not the manifest's"):
        read_engine(engine)
    assert len(list(engine.parent.iterdir())) == 2


def test_engine_as_classifier_is_checked_first(engine: Path) -> None:
    """What would run it is asked only about an engine that is what was built, of a classifier."""
    with pytest.raises((cf.BackendUnavailable, EngineError), match=r"e\.engine"):
        cf.Classifier.load(engine)
    edited(engine, part="decoder")
    with pytest.raises(cf.ClassifierError, match="an engine of the decoder"):
        cf.Classifier.load(engine)
    engine.write_bytes(PLAN[:-1])
    with pytest.raises(EngineError, match="truncated"):
        cf.Classifier.load(engine)
    assert read_manifest(engine).part == "decoder"


def test_engine_as_classifier_is_read_once(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that were checked are those that are run, whatever the file holds by then."""
    given: list[tuple[bytes, Manifest]] = []

    def run(path: Path, plan: bytes, manifest: Manifest) -> Any:
        engine.write_bytes(b"another")
        given.append((plan, manifest))
        raise cf.BackendUnavailable("seen")

    checked = read_engine(engine)
    monkeypatch.setattr("cae_fast.engines.runtime.run_engine", run)
    with pytest.raises(cf.BackendUnavailable, match="seen"):
        cf.Classifier.load(engine)
    assert given == [checked]


def test_engine_replaced_while_a_folder_is_searched_is_not_taken(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must be what is asked for by the manifest that was read with it, not by an earlier one."""
    from cae_fast.engines import cache
    from cae_fast.engines.build import EngineRequest
    from cae_fast.engines.flavours import Flavour
    from cae_fast.testing import toy_model

    model = toy_model()
    wanted = EngineRequest(model=model, part="decoder", precision="fp16", max_batch=4)
    fits = dataclasses.replace(
        MANIFEST, part="decoder", model_sha256=model.sha256, built_by=cf.__version__
    )
    flavour = Flavour(MANIFEST.flavour, MANIFEST.version, None)
    written = write_engine(engine, PLAN, fits)
    search = (engine.parent, wanted, flavour, "sm89", None)
    assert cache.fitting(*search) == (PLAN, written)

    def then_replaced(path: Path, *, key: bytes | None) -> Manifest:
        said = read_manifest(path, key=key)
        write_engine(path, PLAN[::-1], dataclasses.replace(fits, model_sha256="b" * 64))
        return said

    monkeypatch.setattr(cache, "read_manifest", then_replaced)
    assert cache.fitting(*search) is None

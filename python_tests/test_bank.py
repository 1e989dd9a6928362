# SPDX-License-Identifier: Apache-2.0
"""The code bank: built, searched, saved, and refused when damaged."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cae_fast as cf
from cae_fast.testing import toy_model

NAMES = ("ant", "bee", "cat")


def make_bank(**changes: Any) -> cf.CodeBank:
    """Six rows on a line: code i is at (i, 0); classes 0 1 2 0 1 2, row 4 classified wrongly."""
    fields: dict[str, Any] = {
        "codes": np.stack([np.arange(6), np.zeros(6)], axis=1).astype(np.float32),
        "names": ["a.png", "b,x.png", 'c"q.png', "d\n.png", "é.png", "f.png"],
        "groups": ["p", "p", "q", "q", "r", "r"],
        "labels": np.array([0, 1, 2, 0, 1, 2]),
        "predicted": np.array([0, 1, 2, 0, 2, 2]),
        "class_names": NAMES,
        "model_sha256": "ab" * 32,
        "classifier": "toy",
    }
    return cf.CodeBank(**(fields | changes))


def test_columns_are_kept() -> None:
    bank = make_bank()
    assert len(bank) == 6
    assert bank.code_dim == 2
    assert bank.usable.tolist() == [True, True, True, True, False, True]
    assert make_bank(predicted=np.full(6, -1), classifier=None).usable.all()
    assert "6 images" in repr(bank)
    assert bank.sha256 == make_bank().sha256
    assert bank.sha256 != make_bank(labels=np.array([1, 1, 2, 0, 1, 2])).sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.zeros(6, np.float32)}, r"codes must be float \[B, D\]"),
        ({"codes": np.zeros((6, 2), int)}, r"codes must be float"),
        ({"codes": np.zeros((0, 2), np.float32)}, "codes must be float"),
        ({"codes": np.array([[0, 0]] * 5 + [[0, np.nan]])}, "code_.* NaN or Inf in 1 rows.* row 5"),
        ({"codes": np.full((6, 2), 1e300)}, "code_.* NaN or Inf in 6 rows"),
        ({"names": ["a"] * 6}, "column name holds 'a' more than once"),
        ({"names": ["a"]}, "column names has 1 rows, codes have 6"),
        ({"groups": ["a"]}, "column groups has 1 rows"),
        ({"labels": np.zeros(5, int)}, r"column labels must be integers \[6\]"),
        ({"labels": np.zeros(6)}, "column labels must be integers"),
        ({"labels": np.array([0, 1, 2, 3, 0, 0])}, r"column labels must be in 0\.\.2, got 3"),
        ({"labels": np.array([0, 1, -1, 0, 0, 0])}, "column labels .* got -1"),
        ({"predicted": np.array([0, 1, -2, 0, 0, 0])}, r"column predicted must be in -1\.\.2"),
        ({"class_names": ("a", "a", "b")}, "class_names must be"),
        ({"thumbnails": [b""]}, "column thumbnails has 1 rows"),
    ],
)
def test_wrong_columns_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(cf.BankError, match=message):
        make_bank(**changes)


def test_nearest_rows_of_a_class() -> None:
    bank = make_bank()
    points = np.array([[0, 0], [5, 9], [2.5, 0]], dtype=np.float32)
    assert bank.nearest(points, 0).tolist() == [[0], [3], [3]]
    assert bank.nearest(points, [0, 1, 2]).tolist() == [
        [0],
        [1],
        [2],
    ]  # row 4 is classified wrongly
    assert bank.nearest(points, 2, k=2).tolist() == [[2, 5], [5, 2], [2, 5]]
    assert bank.nearest(points[2:], -1, source_class=2).tolist() == [[3]]
    tie = make_bank(codes=np.zeros((6, 2), np.float32))
    assert tie.nearest(points, 2, k=2).tolist() == [[2, 5]] * 3  # lowest row first
    assert bank.nearest(points[2:], 2, exclude_groups=["q"]).tolist() == [[5]]
    assert bank.nearest(points[:2], 0, exclude_groups=["p", None]).tolist() == [[3], [3]]


def test_nearest_refuses() -> None:
    bank = make_bank()
    point = np.zeros((1, 2))
    with pytest.raises(cf.BankError, match=r"1 correctly classified .* class 'bee', 2 needed"):
        bank.nearest(point, 1, k=2)
    with pytest.raises(cf.BankError, match="0 correctly classified images of class 7"):
        bank.nearest(point, 7)
    with pytest.raises(cf.BankError, match=r"0 .*'bee'"):
        bank.nearest(point, 1, exclude_groups=["p"])
    for codes in (np.zeros(2), np.zeros((1, 3))):
        with pytest.raises(ValueError, match="codes must be"):
            bank.nearest(codes, 0)
    for k in (0, True, 1.5):
        with pytest.raises(ValueError, match="k must be"):
            bank.nearest(point, 0, k=k)  # type: ignore[arg-type]


def test_knn_accuracy_worked_by_hand() -> None:
    codes = np.array([[0], [0.1], [5], [5.1], [0.2], [9]], dtype=np.float32)
    labels = np.array([0, 0, 1, 1, 0, 0])
    bank = make_bank(codes=codes, labels=labels, groups=list("abcdef"))
    assert bank.knn_accuracy(1) == pytest.approx(5 / 6)  # row 5 is nearest to row 3
    # Rows 2 and 3 may not vouch for each other within their group: both meet row 5.
    assert make_bank(codes=codes, labels=labels).knn_accuracy(1) == pytest.approx(3 / 6)
    everyone = make_bank(groups=list("abcdef"), labels=np.array([0, 0, 0, 0, 0, 1]))
    assert everyone.knn_accuracy(5) == pytest.approx(5 / 6)
    with pytest.raises(cf.BankError, match="9 neighbours"):
        bank.knn_accuracy(9)
    with pytest.raises(ValueError, match="k must be"):
        bank.knn_accuracy(0)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".CSV"])
@pytest.mark.parametrize("thumbnails", [False, True])
def test_round_trip(tmp_path: Path, suffix: str, thumbnails: bool) -> None:
    codes = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    codes[0] = [1e-42, -3e38]
    pictures = [bytes([i] * 5) for i in range(6)] if thumbnails else None
    bank = make_bank(codes=codes, thumbnails=pictures)
    path = tmp_path / f"bank{suffix}"
    bank.save(path)
    again = cf.CodeBank.load(path)
    np.testing.assert_array_equal(again.codes, codes)
    np.testing.assert_array_equal(again.labels, bank.labels)
    np.testing.assert_array_equal(again.predicted, bank.predicted)
    for name in ("names", "groups", "class_names", "model_sha256", "classifier", "thumbnails"):
        assert getattr(again, name) == getattr(bank, name)
    assert again.sha256 == bank.sha256
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_no_classifier_round_trip(tmp_path: Path) -> None:
    make_bank(predicted=np.full(6, -1), classifier=None).save(tmp_path / "bank.csv")
    assert cf.CodeBank.load(tmp_path / "bank.csv").classifier is None


def test_every_cut_of_a_csv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank.csv"
    make_bank().save(path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(cf.BankError, match=r"bank\.csv"):
            cf.CodeBank.load(path)


def test_cuts_of_a_parquet_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank.parquet"
    make_bank().save(path)
    data = path.read_bytes()
    for length in [*range(0, 20), *range(20, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(cf.BankError, match=r"bank\.parquet"):
            cf.CodeBank.load(path)


def edit_csv(path: Path, **changes: Any) -> None:
    """Changes the metadata of a CSV bank."""
    first, _, body = path.read_text(encoding="utf-8").partition("\n")
    prefix, _, text = first.partition("{")
    metadata = json.loads("{" + text) | changes
    path.write_text(f"{prefix}{json.dumps(metadata)}\n{body}", encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("label", "class", "missing column label; unknown column class"),
        ("code_1", "code_2", "missing column code_1"),
        ("predicted", "label", "a column occurs twice"),
        ("0.0", "nan", "code_. holds NaN"),
        ("0.0", "1e99", "code_. holds NaN"),
        ("0.0", "x", "column code_0 holds something else than numbers"),
        ("p,0,0", "p,0.5,0", "column label holds something else than numbers"),
        ("p,0,0", "p,9,0", r"column labels must be in 0\.\.2, got 9"),
        ("p,0,0", "p,0,0,1", "row 0 has 7 columns, expected 6"),
        ("5.0,0.0", "5.5,0.0", "does not match the sha256"),
        ("f.png", "a.png", "'a.png' more than once"),
        ("# cae_fast-bank", "# other", "metadata is missing"),
        ('{"format"', '{"format', "not valid JSON"),
    ],
)
def test_edited_csv_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "bank.csv"
    make_bank().save(path)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(cf.BankError, match=rf"bank\.csv: .*({message})"):
        cf.CodeBank.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format version 2, this version reads 1"),
        ({"format": None}, "format version None"),
        ({"class_names": "abc"}, "lacks class_names"),
        ({"model_sha256": 3}, "lacks class_names, model_sha256"),
        ({"rows": 5}, "6 rows, its metadata says 5"),
        ({"code_dim": 3}, "missing column code_2"),
        ({"code_dim": 10**9}, "lacks"),
        ({"class_names": ["ant", "bee"]}, "column labels"),
    ],
)
def test_wrong_metadata_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    path = tmp_path / "bank.csv"
    make_bank().save(path)
    edit_csv(path, **changes)
    with pytest.raises(cf.BankError, match=message):
        cf.CodeBank.load(path)


def test_wrong_parquet_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bank.parquet"
    make_bank().save(path)
    table = pq.read_table(path)
    nulls = pa.array([None, *table.column("code_0").to_pylist()[1:]], pa.float32())
    at = table.column_names.index("code_0")
    for bad, message in [
        (table.drop_columns(["group"]), "missing column group"),
        (table.replace_schema_metadata({}), "metadata is missing"),
        (table.slice(0, 4), "4 rows, its metadata says 6"),
        (table.set_column(at, "code_0", nulls), "column code_0 holds something else"),
        (table.set_column(0, "name", table.column("label")), "name and group must hold texts"),
        (
            table.set_column(2, "label", table.column("code_0")),
            "column label holds something else than numbers",
        ),
    ]:
        pq.write_table(bad, path)
        with pytest.raises(cf.BankError, match=rf"bank\.parquet: .*{message}"):
            cf.CodeBank.load(path)


def test_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(cf.BankError, match="no such bank"):
        cf.CodeBank.load(tmp_path / "absent.csv")
    with pytest.raises(cf.BankError, match=r"a \.parquet or \.csv file"):
        cf.CodeBank.load(tmp_path / "bank.json")
    with pytest.raises(cf.BankError, match=r"a \.parquet or \.csv file"):
        make_bank().save(tmp_path / "bank.json")
    (tmp_path / "bank.csv").write_text(f"# cae_fast-bank {'[' * 100_000}\nname\n")
    with pytest.raises(cf.BankError, match="not valid JSON"):
        cf.CodeBank.load(tmp_path / "bank.csv")
    (tmp_path / "bank.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(cf.BankError, match="UTF-8"):
        cf.CodeBank.load(tmp_path / "bank.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(cf.MissingExtra, match=r"cae_fast\[parquet\]"):
        make_bank().save(tmp_path / "bank.parquet")
    assert not (tmp_path / "bank.parquet").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of four noise images, darker and brighter."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            pixels = generator.integers(0, 100, (16, 16)) + 150 * label
            path = tmp_path / "data" / name / f"{i}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "data"


def brightness(images: Any) -> Any:
    mean = images.mean(axis=(1, 2, 3))
    return np.stack([-mean, mean], axis=1)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_build(folder: Path, backend: str) -> None:
    model = toy_model(num_classes=2, class_names=("dark", "light"))
    dataset = cf.ImageDataset.from_folder(folder)
    seen: list[tuple[int, int]] = []
    bank = cf.CodeBank.build(
        model,
        dataset,
        classifier=brightness,
        thumbnails=True,
        backend=backend,
        batch=3,
        on_progress=lambda *at: seen.append(at),
    )
    assert seen == [(3, 8), (6, 8), (8, 8)]
    assert list(bank.names) == dataset.files
    assert list(bank.groups) == dataset.groups
    np.testing.assert_array_equal(bank.labels, dataset.labels)
    np.testing.assert_array_equal(bank.predicted, dataset.labels)
    assert bank.model_sha256 == model.sha256
    assert bank.classifier == "brightness"
    images = dataset.load(size=16, channels=1)
    codes = cf.Explainer(model, brightness).encode(images).class_code
    np.testing.assert_allclose(bank.codes, codes, atol=1e-5)
    assert bank.thumbnails is not None
    assert all(png.startswith(b"\x89PNG") for png in bank.thumbnails)
    assert base64.b64encode(bank.thumbnails[0])
    bank.check(model)
    with pytest.raises(cf.BankError, match="encode the images again"):
        bank.check(toy_model(num_classes=2, class_names=("dark", "light"), seed=3))


def test_build_without_classifier(folder: Path) -> None:
    model = toy_model(num_classes=2, class_names=("dark", "light"))
    bank = cf.CodeBank.build(model, cf.ImageDataset.from_folder(folder))
    assert (bank.predicted == -1).all()
    assert bank.thumbnails is None


def test_build_refuses_other_classes(folder: Path) -> None:
    dataset = cf.ImageDataset.from_folder(folder)
    model = toy_model(num_classes=2, class_names=("light", "dark"))
    with pytest.raises(cf.BankError, match=r"\['dark', 'light'\].*\['light', 'dark'\]"):
        cf.CodeBank.build(model, dataset)
    fitting = toy_model(num_classes=2, class_names=("dark", "light"))
    with pytest.raises(cf.BankError, match="3 logits, the data set has 2 classes"):
        cf.CodeBank.build(fitting, dataset, classifier=lambda x: np.zeros((len(x), 3)))


def test_build_with_an_unreadable_image(folder: Path) -> None:
    model = toy_model(num_classes=2, class_names=("dark", "light"))
    dataset = cf.ImageDataset.from_folder(folder)
    (folder / "dark" / "1.png").write_bytes(b"not an image")
    with pytest.raises(cf.ImageDecodeError, match=r"1\.png"):
        cf.CodeBank.build(model, dataset)
    bank = cf.CodeBank.build(model, dataset, on_error="collect")
    assert len(bank) == 7
    assert list(bank.skipped) == ["dark/1.png"]
    assert "dark/1.png" not in bank.names

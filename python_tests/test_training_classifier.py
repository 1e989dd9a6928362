# SPDX-License-Identifier: Apache-2.0
"""The baseline classifier: what is written, what is measured, what is refused."""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_cases import CLASSES, tiny_folder, tiny_options, write_classes

import cae_fast as cf
from cae_fast.data import ImageDataset
from cae_fast.errors import CAEError, ClassifierError
from cae_fast.training import ClassifierOptions
from cae_fast.training.options import Augment

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

# These need torch.
from cae_fast.training import ClassifierFiles, train, train_classifier  # noqa: E402
from cae_fast.training.augmentation import shifted  # noqa: E402
from cae_fast.training.classifier import fit_classifier  # noqa: E402
from cae_fast.training.classifier_export import write_onnx, write_pt2  # noqa: E402
from cae_fast.training.classifier_network import ResidualClassifier  # noqa: E402
from cae_fast.training.critic import load_critic  # noqa: E402
from cae_fast.training.pipeline import ImageStore, LabelledImages, read_splits  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*not clearly better than chance:UserWarning"),
]


def options(data: Path, out: Path, **overrides: Any) -> ClassifierOptions:
    fields: dict[str, Any] = {
        "width": 4, "epochs": 12, "batch_size": 8, "device": "cpu", "quiet": True,
        "learning_rate": 2e-2, "validation_fraction": 0.2,
    }  # fmt: skip
    return ClassifierOptions(data=data, out=out, **(fields | overrides))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("classifier") / "data")


@pytest.fixture(scope="module")
def trained(data: Path) -> ClassifierFiles:
    return train_classifier(options(data, data.parent / "models" / "classifier.onnx"))


def test_both_files_give_the_same_right_answers(data: Path, trained: ClassifierFiles) -> None:
    test = ImageDataset.from_folder(data, "test")
    images = test.load(size=16, channels=1)
    onnx, pt2 = (cf.Classifier.load(path) for path in (trained.onnx, trained.pt2))
    assert onnx.labels == pt2.labels == CLASSES
    logits = onnx(images)
    np.testing.assert_allclose(pt2(images), logits, atol=1e-4)
    assert np.mean(logits.argmax(axis=1) == test.labels) >= 0.9
    for batch in (1, 5):  # any batch size
        np.testing.assert_allclose(onnx(images[:batch]), logits[:batch], atol=1e-4)
        np.testing.assert_allclose(pt2(images[:batch]), logits[:batch], atol=1e-4)


def test_files_say_what_they_are(trained: ClassifierFiles) -> None:
    session = onnxruntime.InferenceSession(str(trained.onnx), providers=["CPUExecutionProvider"])
    said = json.loads(session.get_modelmeta().custom_metadata_map["cae_fast.classifier"])
    extra = {"cae_fast.classifier.json": ""}
    torch.export.load(trained.pt2, extra_files=extra)
    assert json.loads(extra["cae_fast.classifier.json"]) == said
    assert said["labels"] == list(CLASSES)
    assert (said["size"], said["channels"], said["outputs"]) == (16, 1, "logits")
    assert said["accuracy"] == trained.accuracy
    assert trained.accuracy["validation"]["images"] == 6
    assert trained.accuracy["test"]["images"] == 9
    assert trained.accuracy["test"]["balanced_accuracy"] >= 0.9
    assert set(trained.accuracy["test"]["recall"]) == set(CLASSES)
    given, produced = session.get_inputs()[0], session.get_outputs()[0]
    assert (given.name, given.shape[1:]) == ("images", [1, 16, 16])
    assert isinstance(given.shape[0], str)
    assert (produced.name, produced.shape[1]) == ("logits", 3)


def test_files_do_not_name_folders_of_the_machine(trained: ClassifierFiles) -> None:
    for path in (trained.pt2, trained.onnx):
        content = Path(path).read_bytes()
        assert b"classifier_network.py" not in content
        assert str(Path(__file__).parent.parent).encode() not in content
        assert b"cae_fast.classifier" in content  # what the file is stays said


def test_same_seed_gives_the_same_network(data: Path, tmp_path: Path) -> None:
    logits = []
    images = ImageDataset.from_folder(data, "test").load(size=16, channels=1)
    for i in range(2):
        files = train_classifier(options(data, tmp_path / f"{i}.pt2", epochs=2, seed=5))
        logits.append(cf.Classifier.load(files.onnx)(images))
    np.testing.assert_array_equal(logits[0], logits[1])


def test_noise_is_drawn_for_each_image_anew(data: Path, tmp_path: Path) -> None:
    splits = read_splits(data, 0.2, 0)
    train, held = (
        LabelledImages(ImageStore(part, 16, 1), part.labels)
        for part in (splits.train, splits.validation)
    )
    first = []
    for most in (0.0, 0.5):
        seen: list[torch.Tensor] = []
        network = ResidualClassifier(1, 3, 4)
        network.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].clone()))
        how = options(data, tmp_path / "c.pt2", noise=most, epochs=1)
        fit_classifier(network, how, train, held, 3, lambda *_: None)
        first.append(seen[0])
    deviation = (first[1] - first[0]).std(dim=(1, 2, 3))
    assert ((deviation > 0) & (deviation < 0.6)).all()
    assert deviation.max() > 2 * deviation.min()


def test_existing_files_are_kept_unless_told_otherwise(
    data: Path, trained: ClassifierFiles, tmp_path: Path
) -> None:
    kept = tmp_path / "c.onnx"
    kept.write_bytes(b"mine")
    with pytest.raises(CAEError, match=r"c\.onnx exists"):
        train_classifier(options(data, tmp_path / "c.pt2"))
    assert kept.read_bytes() == b"mine"
    train_classifier(options(data, tmp_path / "c.pt2", epochs=1, overwrite=True))
    assert cf.Classifier.load(kept).labels == CLASSES


def test_classifier_of_noise_is_said_to_be_at_chance(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        write_classes(tmp_path / "data", {name: 12}, seed=seed)
    with pytest.warns(UserWarning, match="not clearly better than chance"):
        train_classifier(options(tmp_path / "data", tmp_path / "c.pt2", epochs=1))


def test_progress_reports_each_epoch_and_training_stops_early(data: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def progress(epoch: int, epochs: int, values: dict[str, float]) -> None:
        assert epochs == 50
        assert {"loss", "validation_balanced_accuracy"} <= set(values)
        seen.append(epoch)

    train_classifier(options(data, tmp_path / "c.pt2", epochs=50, patience=2), progress)
    assert seen == list(range(1, len(seen) + 1))
    assert 3 <= len(seen) < 50


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"out": "classifier.pth"}, r"out must be the name of a \.pt2 or \.onnx file"),
        ({"epochs": 0}, "epochs must be in"),
        ({"batch_size": 0}, "batch_size must be in"),
        (
            {"augment": "mirror"},
            "augment must be one of none, flip, dihedral, strong, got 'mirror'",
        ),
        ({"image_size": 4}, "image_size must be in"),
        ({"noise": -0.1}, "noise must be in"),
        ({"noise": float("nan")}, "noise must be in"),
    ],
)
def test_wrong_options_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CAEError, match=message):
        ClassifierOptions(**({"data": "data", "out": "c.pt2"} | overrides))


def test_folders_that_cannot_be_learned_from_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "one", {"dark": 4})
    with pytest.raises(CAEError, match="dark"):
        train_classifier(options(tmp_path / "one", tmp_path / "c.pt2"))
    write_classes(tmp_path / "few", {"dark": 4, "light": 1})
    with pytest.raises(CAEError, match="fewer than two training images of class light"):
        train_classifier(options(tmp_path / "few", tmp_path / "c.pt2"))
    assert not list(tmp_path.glob("c.*"))


def test_export_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    class Fickle(ResidualClassifier):
        """Computes something else while it is being exported."""

        def forward(self, images: Any) -> Any:
            logits = super().forward(images)
            return logits + 1 if torch.compiler.is_exporting() else logits

    network = Fickle(1, 2, 4).eval()
    said = {"labels": ["a", "b"], "size": 16, "channels": 1, "outputs": "logits"}
    for write, name in ((write_pt2, "c.pt2"), (write_onnx, "c.onnx")):
        with pytest.raises(ClassifierError, match="differs from the trained one by 1"):
            write(network, tmp_path / name, said)
    assert list(tmp_path.iterdir()) == []


def test_shifts_move_whole_images_and_repeat_the_border() -> None:
    images = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(50, 1, 1, 1)
    moved = shifted(images, 1, np.random.default_rng(0))
    assert moved.shape == images.shape
    assert len({tuple(row.flatten().tolist()) for row in moved}) == 9
    right = torch.tensor([[0.0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10], [12, 12, 13, 14]])
    assert bool((moved[:, 0] == right).all(dim=(1, 2)).any())
    assert shifted(images, 0, np.random.default_rng(0)) is images


def test_critic_guides_training_and_stays_as_it_is(
    data: Path, trained: ClassifierFiles, tmp_path: Path
) -> None:
    critic = load_critic(trained.pt2, CLASSES, 1, torch.device("cpu"))
    images = (torch.rand(2, 1, 32, 32) * 2 - 1).requires_grad_()  # another size: resized
    critic(images).sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0
    before = trained.pt2.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = tiny_options(data, tmp_path / "run", critic=trained.pt2, classifier=trained.onnx)
        path = train(run)
    header = (tmp_path / "run" / "log.csv").read_text().splitlines()[0].split(",")
    assert "critic" in header
    promises = cf.CAE.load(path).provenance["promises"]["validation"]
    assert promises["judge"] == "classifier.onnx"
    assert trained.pt2.read_bytes() == before


@pytest.mark.parametrize("said", ["", "{", "[" * 100_000, '["labels", "size", "channels"]', "{}"])
def test_critic_with_other_metadata_is_refused(
    trained: ClassifierFiles, tmp_path: Path, said: str
) -> None:
    program = torch.export.load(trained.pt2)
    extra = {"cae_fast.classifier.json": said}
    torch.export.save(program, tmp_path / "critic.pt2", extra_files=extra)
    with pytest.raises(ClassifierError, match=r"critic\.pt2: .*(not a JSON|train-classifier)"):
        load_critic(tmp_path / "critic.pt2", CLASSES, 1, torch.device("cpu"))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_found_before_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(
        "cae_fast.training.classifier.fit_classifier", lambda *_: pytest.fail("trained")
    )
    with pytest.raises(cf.MissingExtra, match=rf"{package} is needed.*cae_fast\[train\]"):
        train_classifier(options(data, tmp_path / "new" / "classifier.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_no_folders(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    deep = tmp_path / "new" / "deep" / "classifier.onnx"
    with pytest.raises(ValueError, match="missing"):
        train_classifier(options(tmp_path / "missing", deep))
    monkeypatch.setattr("cae_fast.training.classifier.write_pt2", fail)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        train_classifier(options(data, deep, epochs=1))
    assert list(tmp_path.iterdir()) == []


def test_critic_of_other_classes_or_channels_is_refused(trained: ClassifierFiles) -> None:
    with pytest.raises(ClassifierError, match="striped"):
        load_critic(trained.pt2, ("cat", "dog", "cow"), 1, torch.device("cpu"))
    with pytest.raises(ClassifierError, match="takes 1 channels, the model has 3"):
        load_critic(trained.pt2, CLASSES, 3, torch.device("cpu"))


@pytest.mark.parametrize("augment", ["dihedral", "strong"])
def test_real_blood_cells_are_learned_from(
    shared_dir: Path, tmp_path: Path, augment: Augment
) -> None:
    seen: list[float] = []
    run = ClassifierOptions(
        data=shared_dir / "data" / "blood_cells", out=tmp_path / "c.onnx", image_size=16,
        width=4, epochs=3, device="cpu", augment=augment,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = train_classifier(run, lambda *values: seen.append(values[2]["loss"]))
    assert files.class_names == ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
    assert files.accuracy["test"]["images"] == 100
    assert seen[-1] < seen[0]


def test_run_without_a_critic_trains_its_own_and_keeps_it(data: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = train(tiny_options(data, tmp_path / "run", critic=None))
        critic = (tmp_path / "run" / "critic.pt2").read_bytes()
        train(tiny_options(data, tmp_path / "run", critic=None, steps=4, resume=True))
        train(tiny_options(data, tmp_path / "plain", critic=Path("none")))  # as the shell gives it
    assert (tmp_path / "run" / "critic.pt2").read_bytes() == critic
    assert cf.CAE.load(path).provenance["promises"]["validation"]["judge"] == "critic"
    own = cf.Classifier.load(tmp_path / "run" / "critic.pt2")
    test = ImageDataset.from_folder(data, "test")
    assert np.mean(own(test.load(size=16, channels=1)).argmax(axis=1) == test.labels) >= 0.9
    assert not (tmp_path / "plain" / "critic.pt2").exists()

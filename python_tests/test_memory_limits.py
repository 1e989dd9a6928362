# SPDX-License-Identifier: Apache-2.0
"""Processes that may have little memory: they split, or refuse with one line, and live on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from explain_cases import World
from memory_cases import run_sparingly
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")

_HUNGRY = """
model = toy_model(image_size=32, seed=1)
images = random_images(model.config, 48)
ends = np.random.default_rng(1).normal(0, 20, (48, 4)).astype(np.float32)
plain = toy_classifier(model.config, seed=1)
sizes = []

def hungry(images):  # as networks are: 8 MiB of activations for each image
    sizes.append(len(images))
    memory = np.empty((len(images), 8 * MIB), dtype=np.uint8)
    return plain(images)
"""


def test_a_limit_on_address_space_splits_the_groups() -> None:
    """A group of 32 takes 256 MiB and more, one of 8 takes 64; there are 128."""
    done = run_sparingly(
        _HUNGRY
        + """
explainer = cf.Explainer(model, hungry, max_batch=32)
whole = explainer.explain(images, "any", ends)
assert max(sizes) == 32 and (whole.status == "flipped").any()
sizes.clear()
leave(128)
found = explainer.explain(images, "any", ends)
assert_same(found, whole)
assert sizes[:3] == [32, 16, 8] and max(sizes[3:]) <= 8, sizes

leave(4)  # not even one image
text = refusal(explainer.explain, images, "any", ends)
assert "images to explain do not fit: max_batch=32 was tried and halved down to 1" in text, text
assert "MiB" in text and "more memory" in text, text
codes = explainer.encode(images)  # which needs less
leave(None)
assert_same(explainer.explain(images, "any", ends), whole)
np.testing.assert_array_equal(explainer.decode(codes.individual, codes.class_code)[:1],
                              explainer.path(images[:1], ends[:1], 0.0)[0])
print("alive")
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_native_memory_that_runs_out_is_a_memory_error() -> None:
    """Weights of 13 MiB and sessions of 600 KiB an image, where 4 MiB are left."""
    done = run_sparingly(
        """
model = toy_model(image_size=128, channels=16, num_blocks=6)
images = random_images(model.config, 40)
cf.Explainer(toy_model(), toy_classifier(toy_model().config))  # loads the modules
leave(4)
text = refusal(cf.Explainer, model, toy_classifier(model.config), max_batch=64)
assert "the weights and buffers of the model do not fit: max_batch=64" in text, text
leave(None)
explainer = cf.Explainer(model, toy_classifier(model.config), max_batch=2)
engine = explainer.backend
individual, codes = engine.encode(images)
paths = np.stack([codes, codes + 1], axis=1)
index = np.arange(40, dtype=np.int32)
expected = engine.session(individual, paths, 8).decode(index[:2], index[:2])
for threads in (1, 2):
    cf.set_num_threads(threads)
    engine.decode(individual[:1], codes[:1], index[:1])  # starts the threads
    leave(4)
    try:
        engine.session(individual, paths, 8)
    except MemoryError as error:
        said = str(error)
    few = engine.session(individual[:2], paths[:2], 8).decode(index[:2], index[:2])
    leave(None)
    assert "bad_alloc" in said, said
    np.testing.assert_array_equal(few, expected)
engine.session(individual, paths, 8)
print("alive")
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_the_command_line_without_memory_is_1_and_one_line(tmp_path: Path) -> None:
    world = World(2)
    world.model.save(tmp_path / "model.safetensors")
    world.bank().save(tmp_path / "bank.csv")
    Image.new("L", (16, 16), 90).save(tmp_path / "image.png")
    (tmp_path / "hungry.py").write_text(
        "import numpy as np\n"
        "def classifier():\n"
        "    return lambda images: np.ones((len(images), 2**40))\n"
    )
    done = run_sparingly(
        f"""
import cae_fast.cli as cli
import cae_fast.report
folder = {str(tmp_path)!r}
sys.path.insert(0, folder)
sys.argv = ["cae-fast", "explain", folder + "/model.safetensors", "hungry:classifier",
            folder + "/image.png", "--bank", folder + "/bank.csv", "--out", folder + "/out"]
cli.main()
"""
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "images to explain do not fit: max_batch=" in done.stderr
    assert done.stderr.startswith("cae-fast: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_many_images_take_no_more_native_memory() -> None:
    """Peak of the whole process beyond inputs and results: 2,000 images after 200.

    One more copy of the images would be 8 MiB.
    """
    done = run_sparingly(
        """
model = toy_model(image_size=32)
images = np.resize(random_images(model.config, 50), (2000, 1, 32, 32))
ends = np.random.default_rng(1).normal(0, 1, (1, 4)).astype(np.float32)
explainer = cf.Explainer(model, toy_classifier(model.config), max_batch=8)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / MIB

explainer.explain(images[:200], "any", ends)
first = peak()
results = explainer.explain(images, "any", ends)
extra = peak() - max(first, now())
assert len(results) == 2000
assert extra < 3, f"{extra} MiB beyond the results"
frames = explainer.path(images, ends, [0.0, 0.5])
codes = explainer.encode(images)
decoded = explainer.decode(codes.individual, codes.class_code)
extra = peak() - max(first, now())
assert extra < 3, f"{extra} MiB beyond the results"
print("done")
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")

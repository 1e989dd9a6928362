# SPDX-License-Identifier: Apache-2.0
"""The validation split: near the fraction asked for, by whole groups, every class kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cae_fast.data import ImageDataset


def test_split_validation_by_class() -> None:
    files = [f"{i}.png" for i in range(115)]
    labels = [0] * 100 + [1] * 10 + [2] * 4 + [3]
    dataset = ImageDataset("/data", files, labels, "abcd")
    train, validation = dataset.split_validation(0.1, seed=3)
    assert list(validation.class_counts().values()) == [10, 1, 1, 0]
    assert sorted(train.files + validation.files) == sorted(files)
    assert train.files == sorted(train.files, key=files.index)
    again = dataset.split_validation(0.1, seed=3)[1]
    assert again.files == validation.files
    assert dataset.split_validation(0.1, seed=4)[1].files != validation.files


def test_split_validation_does_not_depend_on_the_order_of_files() -> None:
    files = [f"{i:03d}.png" for i in range(60)]
    labels = np.arange(60) % 3
    order = np.random.default_rng(0).permutation(60)
    one = ImageDataset("/data", files, labels, "abc").split_validation()[1]
    other = ImageDataset("/data", [files[i] for i in order], labels[order], "abc")
    assert set(other.split_validation()[1].files) == set(one.files)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32),
)
def test_groups_never_straddle(rows: list[tuple[int, int]], fraction: float, seed: int) -> None:
    files = [f"{i}.png" for i in range(len(rows))]
    groups = [f"patient {group}" for group, _ in rows]
    dataset = ImageDataset("/data", files, [label for _, label in rows], "wxyz", groups)
    try:
        train, validation = dataset.split_validation(fraction, seed)
    except ValueError as error:
        refused = str(error)
        assert "no validation part can be split off" in refused
        for group in set(groups):  # then no group can leave without taking a whole class along
            outside = {label for other, label in rows if f"patient {other}" != group}
            assert {label for other, label in rows if f"patient {other}" == group} - outside
        return
    assert len(validation) > 0
    assert not set(train.groups) & set(validation.groups)
    assert sorted(train.files + validation.files) == sorted(files)
    assert set(train.labels) == {label for _, label in rows}  # every class stays in training


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2, float("nan")])
def test_split_validation_fraction(fraction: float) -> None:
    dataset = ImageDataset("/data", ["a.png", "b.png"], [0, 1], "xy")
    with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
        dataset.split_validation(fraction)


def test_large_groups_bend_the_fraction() -> None:
    files = [f"{i}.png" for i in range(80)]
    groups = [f"fold{i % 4}" for i in range(80)]
    dataset = ImageDataset("/data", files, [i // 40 for i in range(80)], "xy", groups)
    train, validation = dataset.split_validation(0.1)
    assert len(validation) == 20
    assert len(set(train.groups)) == 3

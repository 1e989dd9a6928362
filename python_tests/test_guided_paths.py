# SPDX-License-Identifier: Apache-2.0
"""Paths over the neighbour graph, the choice of exemplars, and both in explanations."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from explain_cases import World, assert_same

import cae_fast as cf
from cae_fast.counterfactual_maps import path_ends
from cae_fast.manifold.choice import CHOICES, agreement, medoids, reliable_rows
from cae_fast.manifold.graph import MOST_VERTICES, NeighbourGraph
from cae_fast.manifold.paths import DEFAULT_REACH, GuidedPaths

Codes = npt.NDArray[np.float64]


def bank_of(
    codes: npt.ArrayLike, labels: Any, groups: Any = None, predicted: Any = None
) -> cf.CodeBank:
    codes = np.asarray(codes, dtype=np.float32)
    labels = np.asarray(labels)
    count = len(codes)
    return cf.CodeBank(
        codes=codes,
        names=[f"{i}.png" for i in range(count)],
        groups=[str(i) for i in range(count)] if groups is None else groups,
        labels=labels,
        predicted=labels if predicted is None else predicted,
        class_names=("a", "b", "c"),
        model_sha256="0" * 64,
    )


def half_circle(count: int = 60) -> Codes:
    angle = np.linspace(0, np.pi, count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def brute_force(graph: NeighbourGraph, start: Codes, end: Codes) -> float:
    """Cost of the best path by trying every sequence of nodes, with the documented edges."""
    nodes = np.vstack([graph.codes, start, end])
    n = len(graph.codes)
    edges = graph.edges.toarray()
    cost = np.where(edges > 0, edges**graph.power, np.inf)
    full = np.full((n + 2, n + 2), np.inf)
    full[:n, :n] = cost
    reach = 0.0
    for outer in (n, n + 1):
        gaps = np.linalg.norm(graph.codes - nodes[outer], axis=1)
        near = np.argsort(gaps)[: graph.neighbours]
        full[outer, near] = full[near, outer] = gaps[near] ** graph.power
        reach = max(reach, gaps[near[-1]])
    straight = float(np.linalg.norm(start - end))
    if straight <= reach:
        full[n, n + 1] = straight**graph.power
    best = full[n, n + 1]
    for length in range(1, n + 1):
        for middle in itertools.permutations(range(n), length):
            way = (n, *middle, n + 1)
            best = min(best, sum(full[a, b] for a, b in itertools.pairwise(way)))
    return float(best)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_path_is_the_shortest_of_all(seed: int, power: float) -> None:
    generator = np.random.default_rng(seed)
    graph = NeighbourGraph(generator.normal(size=(6, 2)), neighbours=2, power=power)
    start, end = generator.normal(size=(2, 1, 2)) * 1.5
    (line,) = graph.paths(start, end)
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    assert (steps**power).sum() == pytest.approx(brute_force(graph, start, end), rel=1e-9)


def test_it_follows_the_codes_where_a_line_would_leave_them() -> None:
    graph = NeighbourGraph(half_circle())
    start, end = np.array([[1.05, 0.0]]), np.array([[-1.05, 0.0]])
    (line,) = graph.paths(start, end)
    np.testing.assert_array_equal(line[[0, -1]], np.concatenate([start, end]))
    assert len(line) > 10
    radius = np.linalg.norm(line[1:-1], axis=1)
    np.testing.assert_allclose(radius, 1, atol=1e-6)


def test_parts_are_bridged_where_they_are_nearest() -> None:
    codes = np.concatenate([half_circle(30) + np.array(at) for at in ((0, 0), (0, 5), (9, 0))])
    graph = NeighbourGraph(codes, neighbours=3)
    assert graph.parts == 3
    assert len(graph.bridges) == 2
    (line,) = graph.paths(codes[:1], codes[45:46])
    gaps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    between = np.linalg.norm(codes[:30, None] - codes[None, 30:60], axis=2).min()
    assert gaps.max() == pytest.approx(between)
    assert (gaps > 1).sum() == 1


def test_equal_codes_and_tiny_banks() -> None:
    same = NeighbourGraph(np.zeros((25, 3)), neighbours=3)
    (line,) = same.paths(np.ones((1, 3)), np.full((1, 3), 2.0))
    np.testing.assert_array_equal(line[[0, -1]], [[1.0] * 3, [2.0] * 3])
    one = NeighbourGraph([[0.0, 1.0]])
    far = np.array([[5.0, 5.0]])
    assert len(one.paths(far, np.array([[0.0, 1.0]]))[0]) == 2
    (stays,) = one.paths(far, far)
    np.testing.assert_array_equal(stays, far)
    assert one.paths(np.empty((0, 2)), np.empty((0, 2))) == []


def test_long_paths_are_thinned_and_keep_their_ends() -> None:
    codes = np.stack([np.arange(600.0), np.zeros(600)], axis=1)
    (line,) = NeighbourGraph(codes, neighbours=1).paths(codes[:1], codes[-1:])
    assert len(line) == MOST_VERTICES
    np.testing.assert_array_equal(line[[0, -1]], codes[[0, -1]])


@pytest.mark.parametrize(
    ("codes", "options", "message"),
    [
        (np.zeros((0, 2)), {}, "codes must be"),
        (np.zeros(3), {}, "codes must be"),
        ([[np.nan]], {}, "codes must be"),
        ([[0.0]], {"neighbours": 0}, "neighbours must be"),
        ([[0.0]], {"power": 0.5}, "power must be"),
    ],
)
def test_wrong_graphs(codes: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeighbourGraph(codes, **options)


def test_a_bank_keeps_its_graph() -> None:
    bank = bank_of(half_circle(), np.arange(60) % 3)
    assert NeighbourGraph.of(bank) is NeighbourGraph.of(bank)
    other = bank_of(half_circle(), np.arange(60) % 3)
    assert NeighbourGraph.of(other) is not NeighbourGraph.of(bank)


def test_vertices_are_padded_with_the_last() -> None:
    bank = bank_of(half_circle(), np.arange(60) % 3)
    starts = np.array([[1.0, 0.0], [np.nan, 0.0], [0.0, 1.0]], dtype=np.float32)
    ends = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    vertices = GuidedPaths("graph", bank).vertices(starts, ends)
    assert vertices.shape[1] & (vertices.shape[1] - 1) == 0
    assert vertices.dtype == np.float32
    np.testing.assert_array_equal(vertices[:, 0], starts)
    np.testing.assert_array_equal(vertices[:, -1], ends)
    assert GuidedPaths("line", None).vertices(starts, ends).shape == (3, 2, 2)


def test_agreement_is_counted_by_hand() -> None:
    """A row of class 1 in the midst of class 0, its twin of the same group not asked."""
    codes = [[float(i), 0.0] for i in range(5)] + [[2.1, 0.0], [2.1, 0.01], [50.0, 0.0]]
    labels = [0, 0, 0, 0, 0, 1, 1, 1]
    groups = ["0", "1", "2", "3", "4", "twins", "twins", "7"]
    shares = agreement(bank_of(codes, labels, groups), jury=2)
    # Nearest two of others: row 0 has 1 and 2; row 1 has 0 and 2; row 2 the twins; row 3 has 4
    # and the nearer twin or 2 (0.9 away); row 4 has 3 and the twin (1.9 away);
    # the twins and row 7 have rows of class 0 nearer than those of their own.
    np.testing.assert_allclose(shares, [1, 1, 0, 0, 0.5, 0, 0, 0])


def test_reliable_rows_lie_among_their_own() -> None:
    generator = np.random.default_rng(0)
    codes = np.concatenate(
        [generator.normal(0, 0.1, (40, 2)), generator.normal(5, 0.1, (40, 2)), [[5.0, 5.0]]]
    )
    labels = np.array([0] * 40 + [1] * 40 + [0])
    bank = bank_of(codes, labels)
    reliable = reliable_rows(bank)
    assert not reliable[80], "it lies among the other class"
    assert reliable[:40].all()
    assert bank.nearest([[4.0, 4.0]], 0)[0, 0] == 80
    assert bank.nearest([[4.0, 4.0]], 0, among=reliable)[0, 0] < 40
    # The stray sits in the midst of class 1, a neighbour of all: none is without blame, so those
    # that the most neighbours agree with stand in.
    shares = agreement(bank)[40:80]
    assert shares.max() < 1
    np.testing.assert_array_equal(reliable[40:80], shares == shares.max())


def test_no_class_is_lost_for_want_of_reliable_rows() -> None:
    codes = np.arange(12.0)[:, None]
    bank = bank_of(codes, np.arange(12) % 3, predicted=[*np.arange(11) % 3, 0])
    for k in (1, 3, 9):
        chosen = reliable_rows(bank, k)
        assert not chosen[11], "the classifier gets it wrong"
        counts = np.bincount(bank.labels[chosen], minlength=3)
        assert (counts >= np.minimum(bank.usable_counts(), k)).all()


def test_a_medoid_is_the_most_central_row() -> None:
    codes = np.array([[0.0], [1.0], [2.0], [9.0]])
    np.testing.assert_array_equal(medoids(codes, np.array([[0, 1, 2], [3, 2, 1]])), [[1], [2]])


@pytest.fixture(scope="module")
def world() -> World:
    return World(count=5)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("choice", list(CHOICES))
def test_paths_end_at_the_exemplars_chosen(world: World, backend: str, choice: str) -> None:
    bank = world.bank()
    explainer = world.explainer(bank=bank, backend=backend)
    found = explainer.explain(
        world.images,
        target=1,
        exemplars=choice,
        path="graph",
        k=3,
        tolerance=1 / 8,
        frames=2,
        second_try=False,
    )
    codes = explainer.encode(world.images).class_code
    pool = reliable_rows(bank, 3) if CHOICES[choice].reliable else None
    near = bank.nearest(codes, 1, 3, among=pool)
    expected = medoids(bank.codes, near) if CHOICES[choice].medoid else near
    np.testing.assert_array_equal(found.exemplar, expected)
    ends = bank.codes[expected].astype(np.float64).mean(axis=1).astype(np.float32)
    last = explainer.decode(explainer.encode(world.images).individual, ends)
    assert found.path_images is not None
    np.testing.assert_allclose(found.path_images[:, -1], last, atol=1e-5)
    np.testing.assert_allclose(found.path_images[:, 0], found.reconstruction, atol=1e-6)
    said = found.meta["parameters"]
    assert (said["path"], said["exemplars"], said["k"]) == ("graph", choice, 3)


def test_a_graph_path_is_another_than_the_line(world: World) -> None:
    explainer = world.explainer(bank=world.bank(200), backend="cpu")
    asked = {"target": 1, "exemplars": world.ends, "frames": 5, "tolerance": 1 / 4}
    line, graph = (explainer.explain(world.images, path=p, **asked) for p in ("line", "graph"))
    assert line.path_images is not None
    assert graph.path_images is not None
    ends = graph.path_images[:, [0, -1]] - line.path_images[:, [0, -1]]
    np.testing.assert_allclose(ends, 0, atol=1e-5)
    assert np.abs(graph.path_images[:, 2] - line.path_images[:, 2]).max() > 1e-3
    shown = explainer.path(world.images, world.ends, graph.frame_t, path="graph")
    np.testing.assert_allclose(shown, graph.path_images, atol=1e-5)


def test_every_backend_walks_the_same_path(world: World) -> None:
    bank = world.bank(200)
    asked = {"target": 1, "path": "graph", "k": 2, "tolerance": 1 / 8, "frames": 3}
    cpu, torch = (
        world.explainer(bank=bank, backend=name).explain(world.images, **asked)
        for name in ("cpu", "torch")
    )
    np.testing.assert_array_equal(cpu.exemplar, torch.exemplar)
    np.testing.assert_allclose(cpu.path_images, torch.path_images, atol=2e-5)


def test_lines_go_on_beyond_the_exemplar() -> None:
    codes = np.array([[1.0, 0.5], [0.0, 0.0]], dtype=np.float32)
    ends = np.array([[3.0, 0.1], [0.25, -8.0]], dtype=np.float32)
    beyond = GuidedPaths("line", None, 2).vertices(codes, ends)
    np.testing.assert_array_equal(beyond[:, 0], codes)
    np.testing.assert_allclose(beyond[:, 1], [[5.0, -0.3], [0.5, -16.0]], rtol=1e-6)
    np.testing.assert_array_equal(GuidedPaths("line", None).vertices(codes, ends)[:, 1], ends)
    stays = GuidedPaths("line", None, 1.3).vertices(codes, codes)
    np.testing.assert_array_equal(stays[:, 1], codes)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_what_flips_beyond_the_exemplar_is_reached(backend: str) -> None:
    far = World(count=4, flip=1.05)
    explainer = far.explainer(backend=backend)
    asked: dict[str, Any] = {"target": 1, "exemplars": far.ends, "tolerance": 1 / 64}
    assert set(explainer.explain(far.images, **asked).status) == {"not_flipped"}
    found = explainer.explain(far.images, reach=2, frames=5, **asked)
    assert set(found.status) == {"flipped"}
    assert (found.t_flip > 1 / 2).all(), "beyond the exemplar"
    middle = explainer.path(far.images, far.ends, [1.0])[:, 0]
    assert found.path_images is not None
    np.testing.assert_allclose(found.path_images[:, 2], middle, atol=1e-5)
    shown = explainer.path(far.images, far.ends, found.frame_t, reach=2)
    np.testing.assert_allclose(shown, found.path_images, atol=1e-5)


def test_chosen_exemplars_are_passed_and_given_ones_are_not(world: World) -> None:
    explainer = world.explainer(bank=world.bank(60), backend="cpu")
    asked: dict[str, Any] = {"target": 1, "tolerance": 1 / 8}
    looked_up = explainer.explain(world.images, second_try=False, **asked)
    assert looked_up.meta["parameters"]["reach"] == DEFAULT_REACH > 1
    again = explainer.explain(world.images, reach=DEFAULT_REACH, second_try=False, **asked)
    assert_same(looked_up, again)
    rows = looked_up.exemplar
    given = explainer.explain(world.images, exemplars=rows, **asked)
    assert given.meta["parameters"]["reach"] == 1
    short = explainer.explain(world.images, reach=1, second_try=False, **asked)
    assert_same(given, short)
    graph = explainer.explain(world.images, path="graph", **asked)
    assert graph.meta["parameters"]["reach"] == 1
    ends = path_ends(explainer, looked_up, np.arange(len(rows)))
    drawn = explainer.path(world.images, rows, [1.0], reach=DEFAULT_REACH)[:, 0]
    np.testing.assert_array_equal(ends, drawn)
    assert np.abs(ends - path_ends(explainer, given, np.arange(len(rows)))).max() > 1e-3


@pytest.mark.parametrize("reach", [0.5, 4.5, np.nan, True, "far", np.array([2.0])], ids=repr)
def test_wrong_reaches(world: World, reach: Any) -> None:
    with pytest.raises(ValueError, match=r"reach must be a number in \[1, 4\]"):
        world.explainer().explain(world.images, 1, world.ends, reach=reach)
    with pytest.raises(ValueError, match=r"reach must be a number in \[1, 4\]"):
        world.explainer().path(world.images, world.ends, [0.5], reach=reach)


def test_graphs_end_at_the_exemplar(world: World) -> None:
    with pytest.raises(ValueError, match="reach must be 1 with path='graph', got 2"):
        world.explainer(bank=world.bank()).explain(world.images, 1, path="graph", reach=2)


@pytest.mark.parametrize(
    "asked",
    [
        {"path": "graph"},
        {"reach": 1.3, "k": 3},
        {"reach": 1.3, "exemplars": "medoid", "k": 3},
        {"reach": 1.3, "exemplars": np.array([[1, 4], [2, 5], [1, 7], [0, 3]])},
        {"path": "graph", "exemplars": np.array([[1, 4]])},
        {"exemplars": "reliable", "k": 2},
        {"exemplars": "medoid", "k": 3},
        {"path": "graph", "exemplars": "reliable-medoid", "k": 3},
    ],
    ids=repr,
)
def test_the_device_finds_what_the_host_finds(
    world: World, gpu: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = world.explainer(bank=world.bank(60), backend="cuda", device=gpu, max_batch=4)
    images = world.images[:4].copy()  # so many are searched point after point
    images[1, 0, 0, 0] = np.nan
    options = {"target": "any", "tolerance": 1 / 4} | asked
    found = explainer.explain(images, **options)
    monkeypatch.setattr(explainer, "_on_device", lambda *_: None)
    monkeypatch.setattr(explainer.backend, "coarse_batch", 1)
    assert_same(found, explainer.explain(images, **options))
    assert (found.status != "rejected").sum() == 3


def test_what_a_graph_needs_is_said(world: World) -> None:
    with pytest.raises(cf.BankError, match="path='graph' goes through the codes of a bank"):
        world.explainer().explain(world.images, 1, world.ends, path="graph")
    one_class = world.bank(1)
    explainer = world.explainer(bank=one_class)
    with pytest.raises(cf.BankError, match="0 correctly classified"):
        explainer.explain(world.images, 1, path="graph", exemplars="reliable")
    given = explainer.explain(world.images, 1, world.ends, path="graph", tolerance=1 / 4)
    assert set(given.status) <= {"flipped", "not_flipped"}
    with pytest.raises(ValueError, match=r"exemplars must be .* got 'best'"):
        explainer.explain(world.images, exemplars="best")


def test_images_that_need_no_path_stay_where_they_are(world: World) -> None:
    explainer = world.explainer(bank=world.bank(60), backend="cpu")
    found = explainer.explain(world.images, target=0, path="graph")
    assert set(found.status) == {"already_target"}
    np.testing.assert_array_equal(found.saliency, 0)
    empty = explainer.explain(world.images[:0], path="graph")
    assert len(empty) == 0

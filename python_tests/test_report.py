# SPDX-License-Identifier: Apache-2.0
"""The report: every status in words, nothing unescaped, nothing from outside."""

from __future__ import annotations

import csv
import html.parser
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_cases import HOSTILE, make_explanation

import cae_fast as cf
from cae_fast.classifier_outputs import softmax
from cae_fast.pictures import png_bytes
from cae_fast.report import (
    STATUSES,
    Frames,
    cases,
    html_fragment,
    plot,
    sentence,
    table_rows,
    write_folder,
    write_html,
)
from cae_fast.report.case import passed_before, percent, thousandths
from cae_fast.report.curve import path_svg
from cae_fast.report.folder import folder_names
from cae_fast.report.pictures import heat_pixels, picture_pixels


class Page(html.parser.HTMLParser):
    """Tags, attributes and visible text of a page."""

    VOID = frozenset({"meta", "img", "input", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


@pytest.fixture
def page(tmp_path: Path) -> Page:
    explanation = make_explanation()
    write_html(
        tmp_path / "page.html",
        explanation,
        explanation.images,
        title=f"Title {HOSTILE}",
        exemplar_images=list(explanation.images),
        frames=Frames(explanation.frame_t, explanation.path_images),
        notes=[f"A note {HOSTILE}"],
    )
    return Page((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_every_name_is_shown_as_text(page: Page) -> None:
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.words.count(HOSTILE) >= 6
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_nothing_comes_from_outside(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/png;base64,"), (tag, name)
    assert "link" not in {tag for tag, _ in page.tags}
    style = html_fragment(make_explanation(), None).split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_policy_allows_the_own_script_only(page: Page) -> None:
    policy = next(
        attributes["content"] or ""
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'(;|$)", policy)


def test_every_status_has_its_sentence(page: Page) -> None:
    rows = cases(make_explanation())
    sentences = [sentence(case) for case in rows]
    assert len(set(sentences)) == len(STATUSES)
    for text in sentences:
        assert " ".join(text.split()) in page.words


def test_a_third_class_before_the_flip_is_said_and_drawn() -> None:
    """Where the image is read as that at the last point before the flip, and only there."""
    explanation = make_explanation()
    (plain, *_) = cases(explanation)
    assert passed_before(plain) is None
    assert 'class="bar passed"' not in path_svg(plain)
    logits = explanation.path_logits[0]
    logits[1, 2] = 9  # t = 0.25, between points of the source class
    (between, *_) = cases(explanation)
    assert passed_before(between) is None
    logits[2, 2] = 9  # and t = 0.4375, the last before the flip
    (passed, *_) = cases(explanation)
    assert passed_before(passed) == (0.25, "[bold]third[/bold]")
    assert "and at 0.438 not yet, but “[bold]third[/bold]”." in sentence(passed)
    assert path_svg(passed).count('class="bar passed"') == 1
    assert path_svg(passed).count('class="bar source"') == 1


def test_what_is_not_flipped_is_marked_everywhere(tmp_path: Path) -> None:
    explanation = make_explanation()[1]
    text = html_fragment(explanation, explanation.images)
    # The head explains the word; the card uses it in negations only.
    card = Page(text[text.index("<article") : text.index("</article>") + 10]).words
    assert re.search(r"(?<!not a )counterfactual", card, re.IGNORECASE) is None
    assert card.lower().count("not a counterfactual") >= 3
    write_folder(tmp_path / "out", explanation)
    names = [path.name for path in (tmp_path / "out" / "images").rglob("*.png")]
    assert not [name for name in names if name.startswith(("counterfactual", "overlay"))]
    assert "nearest_point.png" in names


def test_head_has_provenance_totals_and_notice(page: Page) -> None:
    for text in ("a" * 64, "b" * 64, "For research, not for diagnosis", "100 ms", "tolerance"):
        assert text in page.words
    assert page.words.count("1") >= len(STATUSES)


def test_pictures_have_a_description(page: Page) -> None:
    assert all("alt" in attributes for tag, attributes in page.tags if tag == "img")
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawn) == 3
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawn)


def test_curve_has_every_evaluated_point_and_the_flip() -> None:
    explanation = make_explanation()
    text = html_fragment(explanation[0], None)
    assert text.count("<circle") == 2 * len(explanation.path_t[0])
    assert "flip at 0.500" in text
    assert "bracket 0.4375 to 0.5000" in text
    assert "flip at" not in html_fragment(explanation[1], None)


@pytest.mark.parametrize(
    ("reach", "names", "role", "fact"),
    [
        (1.0, ["a.png"], "the path's far end: a.png", "exemplar a.png"),
        (1.5, ["a.png"], "t = 0.667 of the path: a.png", "exemplar at t = 0.667 a.png"),
        (2.0, ["a", "b"], "averaged; their mean: t = 0.5 of the path: a, b", "exemplar at t = 0.5"),
    ],
)
def test_where_on_the_path_the_exemplar_lies(
    tmp_path: Path, reach: float, names: list[str], role: str, fact: str
) -> None:
    explanation = make_explanation()
    explanation.meta["parameters"]["reach"] = reach
    explanation.exemplar_names[0] = tuple(names)
    pictures = list(explanation.images)
    write_html(tmp_path / "page.html", explanation, pictures, exemplar_images=pictures)
    words = Page((tmp_path / "page.html").read_text(encoding="utf-8")).words
    assert role in words
    assert fact in words


def test_any_target_and_unnamed_classes() -> None:
    explanation = make_explanation(class_names=("0", "1", "2"))
    explanation.target_class[:] = -1
    explanation.class_names = ()
    words = Page(html_fragment(explanation, explanation.images)).words
    assert "another class" in words
    assert [row["target_class"] for row in table_rows(explanation)] == ["any other class"] * 6


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_and_no_frames(channels: int) -> None:
    explanation = make_explanation(channels=channels)
    assert "<article" in html_fragment(explanation, explanation.images)


def test_limit_says_how_many_there_are() -> None:
    explanation = make_explanation()
    text = html_fragment(explanation, None, limit=2)
    assert text.count("<article") == 2
    assert "The first 2 of 6 images" in text


@pytest.mark.parametrize("argument", ["images", "originals", "exemplar_images", "frames"])
def test_wrong_counts_are_refused(argument: str) -> None:
    explanation = make_explanation()
    wrong: dict[str, Any] = {"images": explanation.images, argument: list(explanation.images[:2])}
    if argument == "frames":
        wrong[argument] = Frames(explanation.frame_t, explanation.path_images[:2])
    with pytest.raises(ValueError, match=f"{argument}: 2 given, the explanation has 6"):
        html_fragment(explanation, wrong.pop("images"), **wrong)


def test_a_failed_write_leaves_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="images"):
        write_html(path, make_explanation(), np.zeros((1, 3, 16, 16)))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_has_everything(tmp_path: Path) -> None:
    out = tmp_path / "out"
    explanation = make_explanation()
    write_folder(out, explanation, originals=[np.zeros((40, 30, 3), np.uint8)] * 6)
    pictures = {p.relative_to(out / "images").as_posix() for p in (out / "images").rglob("*.png")}
    for name in ("image", "reconstruction", "counterfactual", "difference", "saliency", "overlay"):
        assert f"a_plain/{name}.png" in pictures
    assert sum(name.startswith("a_plain/path/") for name in pictures) == 5
    assert not [name for name in pictures if ".." in name]
    with Image.open(out / "images/a_plain/overlay.png") as opened:
        assert opened.size == (30, 40)
    loaded = cf.Explanation.load(out / "explanation")
    np.testing.assert_array_equal(loaded.saliency, explanation.saliency)
    with open(out / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == list(STATUSES)
    assert rows[0]["t_flip"] == "0.5"
    assert rows[1]["t_flip"] == ""
    assert rows[0]["target_class"] == HOSTILE
    assert [row["exemplar_t"] for row in rows] == ["1.0", "1.0", "", "1.0", "", ""]


def test_parquet_equals_csv(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_folder(tmp_path / "out", make_explanation())
    table = parquet.read_table(tmp_path / "out" / "table.parquet").to_pylist()
    assert table == table_rows(make_explanation())


def test_folder_is_not_mixed_with_another(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_folder(out, make_explanation())
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    write_folder(out, make_explanation(), overwrite=True)
    assert not (out / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folder_names_are_safe_and_distinct() -> None:
    names = ["a.png", "A.png", "../../etc/passwd", "", ".", "x" * 300, "\x00/\n", "a.jpg"]
    safe = folder_names(names)
    assert len({name.lower() for name in safe}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,90}", name) for name in safe)


def test_heat_layer_carries_its_map() -> None:
    saliency = np.linspace(0, 1, 64).reshape(8, 8)
    alpha = heat_pixels(saliency)[..., 3] / 255
    np.testing.assert_allclose(alpha**2, saliency, atol=1 / 255)


def test_pictures_of_every_form_become_rgb() -> None:
    rgb = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    forms = [rgb, Image.fromarray(rgb), png_bytes(rgb), np.dstack([rgb, rgb[..., :1]])]
    for form in forms:
        np.testing.assert_array_equal(picture_pixels(form), rgb)
    assert picture_pixels(rgb[..., 0]).shape == (4, 4, 3)
    with pytest.raises(ValueError, match="picture"):
        picture_pixels(np.zeros((2, 3, 4, 5), np.uint8))


@pytest.mark.parametrize(
    ("t", "text"),
    [(0, "0.000"), (1, "1.000"), (0.8125, "0.813"), (0.4375, "0.438"), (2 / 3, "0.667")],
)
def test_positions_round_halves_up_as_the_page_does(t: float, text: str) -> None:
    assert thousandths(t) == text


def test_softmax_and_percent() -> None:
    np.testing.assert_allclose(softmax([[0.0, np.log(3.0)]]), [[0.25, 0.75]])
    assert np.isnan(softmax([[0.0, np.nan]])).all()
    np.testing.assert_allclose(softmax([[1e4, 0.0]]), [[1.0, 0.0]])
    said = [percent(p) for p in (0.0, 0.0002, 0.004, 0.5, 0.994, 1.0, None, float("nan"))]
    assert said == ["0 %", "<0.1 %", "0.4 %", "50 %", "99.4 %", "100 %", "unknown", "unknown"]


def test_plot_draws_every_status() -> None:
    pytest.importorskip("matplotlib")
    explanation = make_explanation(class_names=("_a$b", HOSTILE, "c"))
    figure = plot(explanation, explanation.images, limit=6)
    assert len(figure.axes) == 36
    figure.canvas.draw()
    assert len(figure.axes[5].lines) >= 3
    titles = [axes.get_title() for axes in figure.axes[6:12]]
    assert any("Not a counterfactual" in title for title in titles)
    assert not any(title.startswith("counterfactual") for title in titles)


@pytest.mark.parametrize(
    ("reconstructed", "begins_as_source", "words", "tile"),
    [
        (0, True, "from the middle of their class", "t = 0"),
        (
            2,
            True,
            "the image is read as “[bold]third[/bold]”, so the path begins",
            "from a code near",
        ),
        (2, False, "from the middle of their class", "t = 0"),  # no start was found
    ],
)
def test_what_a_second_path_is_for(
    reconstructed: int, begins_as_source: bool, words: str, tile: str
) -> None:
    explanation = make_explanation()[0]
    assert "so the path" not in html_fragment(explanation, None)
    explanation.reconstructed_class = np.array([reconstructed])
    explanation.second_path = [np.zeros((2, 8), dtype=np.float32)]
    if not begins_as_source:
        explanation.path_logits[0][0] = [0, 0, 5]
    (case,) = cases(explanation)
    assert case.second_path
    assert case.start_moved == ("code" in tile)
    shown = Page(html_fragment(explanation, explanation.images)).words
    assert words in " ".join(shown.split())
    assert tile in shown

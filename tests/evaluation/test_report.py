"""The page: all that is in the sections, nothing that is not, and nothing to load."""

from __future__ import annotations

import base64
import re
from dataclasses import asdict

import pandas as pd
import pytest

from c2c_lightning.drawing import Estimate, Row, draw_forest, new_figure, save, shown, styled
from c2c_lightning.evaluation.report.findings import findings
from c2c_lightning.evaluation.report.page import Section, write_report
from c2c_lightning.evaluation.report.wording import sections, show
from tests.evaluation.invented import results, right
from tests.evaluation.page import Page, pipe_tables

N = 200
FACTS = {"receiver": "Qwen/Qwen3-0.6B", "date": "2026-11-25"}
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def example(tmp_path):
    """A report's folder, page and findings."""
    scores = {"receiver": 20, "sharer": 10, "text_to_text": 90, "c2c": 180, "wrong_question": 24}
    found = findings(results({name: right(number, N) for name, number in scores.items()}))
    parts = {"invented": sections(found, tmp_path / "figures" / "invented")}
    write_report(tmp_path, "A report", FACTS, parts)
    return tmp_path, Page((tmp_path / "report.html").read_text()), found


def test_the_page_shows_the_numbers_that_were_found(example):
    _, page, found = example
    methods, controls, comparisons = page.tables[:3]
    rows = {row[0]: row[1:3] for table in (methods, controls) for row in table[1:]}
    for name, method in found.methods.items():
        value, low, high = (f"{100 * number:.1f}%" for number in asdict(method.accuracy).values())
        assert rows[shown(name)] == [value, f"[{low}, {high}]"]
    for row in comparisons[1:]:
        difference = found.comparisons[row[0]].difference
        value, low, high = (f"{100 * number:+.1f}".replace("-", "−") for number in asdict(difference).values())
        assert row[1] == f"{value} [{low}, {high}]"
    assert f"{100 * found.question_specific_gain.difference.value:+.1f} points" in page.words


def test_the_page_needs_nothing_beside_it(example):
    folder, page, _ = example
    loaded = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in loaded)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import", (folder / "report.html").read_text())
    pictures = [base64.b64decode(image["src"].partition(",")[2]) for image in page.of("img")]
    assert pictures == [
        (folder / "figures/invented" / f"{name}.png").read_bytes() for name in ("scores", "differences")
    ]
    assert all(image["alt"] for image in page.of("img"))


def test_page_and_markdown_carry_the_same_tables_and_figures(example):
    folder, page, _ = example
    text = (folder / "report.md").read_text()
    assert page.tables == pipe_tables(text)
    linked = re.findall(r"!\[(.+)\]\((.+)\)", text)
    assert [caption for caption, _ in linked] == [image["alt"] for image in page.of("img")]
    assert all((folder / file).is_file() for _, file in linked)
    assert "**receiver**: Qwen/Qwen3-0.6B" in text
    assert "Qwen/Qwen3-0.6B" in page.words


def test_the_same_input_gives_the_same_bytes(example):
    folder, _, found = example
    first = {file: file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}
    write_report(folder, "A report", FACTS, {"invented": sections(found, folder / "figures" / "invented")})
    assert len(first) == 4
    assert first == {file: file.read_bytes() for file in first}


def test_names_from_outside_stay_text(tmp_path):
    table = pd.DataFrame({"subject": [EVIL, "a|b"], "accuracy": ["10.0%", "*20*%"]})
    part = Section(f"About {EVIL}", f"Text {EVIL} ![x](http://x/y.png)", {f"By {EVIL}": table})
    write_report(tmp_path, EVIL, {EVIL: EVIL}, {EVIL: [part], "more": []})
    page, text = Page((tmp_path / "report.html").read_text()), (tmp_path / "report.md").read_text()
    assert not page.of("script")
    assert not page.of("img")
    # Title, heading, contents, part, section, text, caption, cell, and the fact with its name.
    assert page.words.count(EVIL) == 10
    assert page.tables == pipe_tables(text) == [[["subject", "accuracy"], [EVIL, "10.0%"], ["a|b", "*20*%"]]]
    assert text.replace(r"\<script>", "").count("<script>") == 1  # in the section's own text, which is Markdown


def test_formulas_in_names_are_drawn_as_text(tmp_path):
    name = r"$\nothing{$ [b]"
    draw_forest([Row(name, Estimate(0, 0, 1), name)], name, tmp_path / "forest.png", 0.0, name)

    @styled
    def draw():
        figure = new_figure(1)
        figure.subplots().set_yticks([0], [name])
        return figure

    save(draw(), tmp_path, "style")


def test_brackets_in_names_are_printed_as_they_are(capsys, tmp_path):
    found = findings(results({"receiver": right(20, N), "c2c": right(90, N)}))
    found.methods["a[/b]"] = found.methods["c2c"]
    show({"own[/c]": found}, tmp_path / "run[/d]")
    printed = capsys.readouterr().out
    for name in ("own[/c]", "a[/b]", str(tmp_path / "run[/d]" / "report.html")):
        assert name in printed


def test_numbers_are_aligned_to_the_right_and_words_are_not(tmp_path):
    table = pd.DataFrame(
        {"": ["1", "2"], "gain": ["−1.0 [−2.0, +0.1]", "–"], "p": ["< 0.001", "0.1"], "test": ["a", "2"]}
    )
    write_report(tmp_path, "t", {}, {"part": [Section("s", tables={"c": table})]})
    cells = Page((tmp_path / "report.html").read_text()).of("td")
    assert [cell["class"] for cell in cells[:4]] == ["words", "number", "number", "words"]
    rule = next(line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("|:-"))
    assert [cell.endswith(":") for cell in rule.strip("|").split("|")] == [False, True, True, False]


def test_several_parts_have_a_table_of_contents(tmp_path):
    for names in (["one"], ["one", "two"]):
        write_report(tmp_path, "t", {}, {name: [Section("s", "text")] for name in names})
        page = Page((tmp_path / "report.html").read_text())
        targets = [link["href"] for link in page.of("a")]
        assert targets == ([f"#part-{i + 1}" for i in range(len(names))] if len(names) > 1 else [])
        assert {target[1:] for target in targets} <= {article["id"] for article in page.of("article")}


def test_named_rows_and_empty_tables_are_shown(tmp_path):
    named = pd.DataFrame({"open": ["3"]}, index=pd.Index(["layer 0"], name="layer"))
    write_report(tmp_path, "t", {}, {"p": [Section("s", tables={"a": named, "b": pd.DataFrame(columns=["x", "y"])})]})
    tables = Page((tmp_path / "report.html").read_text()).tables
    assert tables == [[["layer", "open"], ["layer 0", "3"]], [["x", "y"]]]
    assert pipe_tables((tmp_path / "report.md").read_text()) == tables

"""The sections of a report, how they print numbers, and the page that they make, as HTML and as Markdown.

The page needs nothing beside it. The same input gives the same bytes.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from c2c_lightning.drawing import Estimate, shown
from c2c_lightning.evaluation.report.statistics import ALPHA, Comparison
from c2c_lightning.files import write_whole

NOTHING = "–"
NOT_SIGNIFICANT = "not significant"
MARKUP = re.compile(r"([\\`*<|]|\](?=\()|&(?=#?\w+;)|(?<!\w)_|_(?!\w))")
BYTES = ("B", "kB", "MB", "GB")
NUMBER = re.compile(r"[<≈+−-]? ?\d")


@dataclass
class Section:
    """What one part of an evaluation has to say."""

    title: str
    text: str = ""  # paragraphs in Markdown, divided by blank lines
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # by caption; values are formatted already
    figures: dict[str, Path] = field(default_factory=dict)  # PNG files by caption


def write_report(
    folder: Path, title: str, facts: Mapping[str, str], parts: Mapping[str, Sequence[Section]], name: str = "report"
) -> Path:
    """Writes `<name>.html`, with its figures inside, and `<name>.md`, which links them.

    In a section's text, a quotation that begins in bold is shown as a large number with what it means;
    HTML and pictures from elsewhere are not let through.

    Args:
        folder: to write to; the sections' figures lie in it.
        title: of the page.
        facts: what holds for all of it, such as the models and the date.
        parts: by heading, such as a benchmark's name; several get a table of contents.
        name: of the two files, of which the HTML is returned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=PackageLoader("c2c_lightning.evaluation.report"),
        autoescape=lambda template: template is not None and template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    environment.filters |= {
        "markdown": lambda text: Markup(markdown.render(text)),
        "plain": plain,
        "embedded": lambda figure: f"data:image/png;base64,{base64.b64encode(figure.read_bytes()).decode()}",
        "linked": lambda figure: quote(Path(os.path.relpath(figure, folder)).as_posix()),
        "cells": cells,
        "markdown_table": markdown_table,
        "is_number": is_number,
    }
    for suffix in ("html", "md"):
        text = environment.get_template(f"report.{suffix}").render(title=title, facts=facts, parts=parts)
        write_whole(folder / f"{name}.{suffix}", text)
    return folder / f"{name}.html"


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text, with its index as first column if it has one to show."""
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index(names=table.index.name or "")
    return table.astype(object).where(table.notna(), NOTHING).map(str)


def is_number(table: pd.DataFrame) -> list[bool]:
    """For each column whether it holds numbers, which are aligned to the right; the first never does."""
    return [
        place > 0 and all(value in ("", NOTHING) or NUMBER.match(value) for value in table.iloc[:, place])
        for place in range(table.shape[1])
    ]


def markdown_table(table: pd.DataFrame) -> str:
    """A table of text as a pipe table."""
    alignment = ["right" if number else "left" for number in is_number(table)]
    escaped = table.map(plain).rename(columns=plain)
    if table.empty:
        return f"| {' | '.join(escaped.columns)} |\n|{' --- |' * len(alignment)}"
    return escaped.to_markdown(index=False, disable_numparse=True, colalign=alignment)


def plain(text: str) -> str:
    """Text that Markdown shows as it stands, in one line."""
    return MARKUP.sub(r"\\\1", " ".join(str(text).split()))


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def points(difference: float) -> str:
    """A difference of two scores in points, with its sign."""
    return f"{100 * difference:+z.1f}".replace("-", "−")


def points_with_interval(difference: Estimate) -> str:
    return f"{points(difference.value)} [{points(difference.low)}, {points(difference.high)}]"


def score(value: float, measure: str) -> str:
    """A mean score: percent where it is an accuracy, otherwise out of 100."""
    return percent(value) if measure == "accuracy" else f"{100 * value:.1f}"


def score_interval(estimate: Estimate, measure: str) -> str:
    return f"[{score(estimate.low, measure)}, {score(estimate.high, measure)}]"


def with_interval(estimate: Estimate, measure: str) -> str:
    """A mean score with its interval."""
    return f"{score(estimate.value, measure)} {score_interval(estimate, measure)}"


def p_value(p: float) -> str:
    """`< 0.001` or three decimals, four where three would hide on which side of ALPHA it lies."""
    if p < 0.001:
        return "< 0.001"
    return f"{p:.4f}" if round(p, 3) == ALPHA else f"{p:.3f}"


def p_in_words(p: float) -> str:
    """`p < 0.001` or `p = 0.320`, never broken over two lines."""
    return f"p {'' if p < 0.001 else '= '}{p_value(p)}".replace(" ", "\u00a0")


def doubt(comparison: Comparison) -> str:
    """What follows a number that may be chance."""
    return "" if comparison.significant else f", {NOT_SIGNIFICANT}"


def verdict(comparison: Comparison, first: str, second: str) -> str:
    """Which of two methods is better, if it can be told."""
    if not comparison.significant:
        return NOT_SIGNIFICANT
    return f"{shown(first if comparison.difference.value > 0 else second)} better"


def compared(comparison: Comparison, first: str, second: str, only_first: str, only_second: str) -> dict[str, str]:
    """The cells of a comparison in a table; `only_first` and `only_second` are columns."""
    return {
        "difference in points [95% interval]": points_with_interval(comparison.difference),
        "p": p_value(comparison.p),
        "verdict": verdict(comparison, first, second),
        only_first: f"{comparison.only_c2c:,}",
        only_second: f"{comparison.only_other:,}",
        "test": comparison.test,
    }


def size(number: float) -> str:
    """Bytes in the unit that suits them."""
    unit = 0
    while number >= 999.5 and unit < len(BYTES) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {BYTES[unit]}"

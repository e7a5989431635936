"""The sections of a report: words, tables and figures; written as one page that needs nothing beside it, and as Markdown.

The same input gives the same bytes.
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

from c2c_lightning.evaluation.report.formatting import NOTHING, plain
from c2c_lightning.files import write_whole

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

"""A part of a report: words, tables and figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd


@dataclass
class Section:
    """What one part of an evaluation has to say.

    Attributes:
        title: its heading.
        text: paragraphs in Markdown, divided by blank lines.
        tables: by caption; values are formatted already.
        figures: PNG files by caption.
    """

    title: str
    text: str = ""
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Path] = field(default_factory=dict)

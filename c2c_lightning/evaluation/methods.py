"""Ways to answer, by the names that configurations write."""

from c2c_lightning.evaluation.asking.methods import (
    C2C,
    Answering,
    Derived,
    Method,
    OracleRouting,
    Receiver,
    Routing,
    Sharer,
)
from c2c_lightning.evaluation.asking.text_to_text import C2CAfterText, TextToText

__all__ = [
    "C2C",
    "Answering",
    "C2CAfterText",
    "Derived",
    "Method",
    "OracleRouting",
    "Receiver",
    "Routing",
    "Sharer",
    "TextToText",
]

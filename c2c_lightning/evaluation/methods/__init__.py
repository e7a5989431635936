"""Ways to answer: each model alone, text-to-text, routing, C2C."""

from c2c_lightning.evaluation.methods.base import Answering, Derived, Method
from c2c_lightning.evaluation.methods.c2c import C2C
from c2c_lightning.evaluation.methods.c2c_after_text import C2CAfterText
from c2c_lightning.evaluation.methods.oracle_routing import OracleRouting
from c2c_lightning.evaluation.methods.receiver import Receiver
from c2c_lightning.evaluation.methods.routing import Routing
from c2c_lightning.evaluation.methods.sharer import Sharer
from c2c_lightning.evaluation.methods.text_to_text import TextToText

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

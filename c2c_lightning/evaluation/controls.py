"""Controls, by the names that configurations write."""

from c2c_lightning.evaluation.asking.controls import (
    CalibratedReceiver,
    MeanUpdate,
    ShuffledChoices,
    WrongQuestion,
    ZeroCache,
    ZeroUpdate,
)

__all__ = ["CalibratedReceiver", "MeanUpdate", "ShuffledChoices", "WrongQuestion", "ZeroCache", "ZeroUpdate"]

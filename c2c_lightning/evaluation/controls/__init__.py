"""Controls: what part of C2C's gain needs no sharer, or not this question's cache."""

from c2c_lightning.evaluation.controls.calibrated_receiver import CalibratedReceiver
from c2c_lightning.evaluation.controls.mean_update import MeanUpdate
from c2c_lightning.evaluation.controls.shuffled_choices import ShuffledChoices
from c2c_lightning.evaluation.controls.wrong_question import WrongQuestion
from c2c_lightning.evaluation.controls.zero_cache import ZeroCache
from c2c_lightning.evaluation.controls.zero_update import ZeroUpdate

__all__ = ["CalibratedReceiver", "MeanUpdate", "ShuffledChoices", "WrongQuestion", "ZeroCache", "ZeroUpdate"]

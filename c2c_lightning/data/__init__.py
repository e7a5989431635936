"""Instruction records -> messages -> aligned batches."""

from c2c_lightning.data.datamodule import InstructionData
from c2c_lightning.data.nano import NanoData

__all__ = ["InstructionData", "NanoData"]

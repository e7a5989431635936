"""The trained part: maps (sharer KV stack, receiver KV stack) to a fused one. Plain torch."""

from c2c_lightning.fuser.base import Fuser, FuserFactory, KVShape
from c2c_lightning.fuser.c2c import C2CFuser
from c2c_lightning.fuser.gate import PART_NAMES, Gate, GateConfig

__all__ = ["PART_NAMES", "C2CFuser", "Fuser", "FuserFactory", "Gate", "GateConfig", "KVShape"]

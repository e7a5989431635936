"""The trained part: maps (sharer KV stack, receiver KV stack) to a fused one. Plain torch."""

from c2c_lightning.fuser.base import Fuser, FuserFactory, KVShape
from c2c_lightning.fuser.c2c import (
    C2CCFuser,
    C2CFuser,
    IdenticalFuser,
    ProjectingFuser,
    ReplacingFuser,
    UnweightedFuser,
)
from c2c_lightning.fuser.fusers import Fusers, LayerMap, Layers, map_layers, select_layers
from c2c_lightning.fuser.gate import PART_NAMES, Gate, GateConfig
from c2c_lightning.fuser.low_rank import LowRankFuser
from c2c_lightning.fuser.ridge import RidgeFuser
from c2c_lightning.fuser.together import fuse_all

__all__ = [
    "PART_NAMES",
    "C2CCFuser",
    "C2CFuser",
    "Fuser",
    "FuserFactory",
    "Fusers",
    "Gate",
    "GateConfig",
    "IdenticalFuser",
    "KVShape",
    "LayerMap",
    "Layers",
    "LowRankFuser",
    "ProjectingFuser",
    "ReplacingFuser",
    "RidgeFuser",
    "UnweightedFuser",
    "fuse_all",
    "map_layers",
    "select_layers",
]

"""What the C2C fuser is without one of its parts (arXiv 2510.03215, table 8), for comparison.

Without its gate it is a `C2CFuser` under `gate.kind: open`.
"""

from __future__ import annotations

from c2c_lightning.fuser.c2c import C2CFuser


class UnweightedFuser(C2CFuser):
    """fused = receiver + gate * update: every token and head gets all of it."""

    weighted = False


class ReplacingFuser(C2CFuser):
    """fused = receiver + gate * (weight * update - receiver): no residual; an open gate replaces the receiver's cache."""

    residual = False


class ProjectingFuser(C2CFuser):
    """fused = receiver + gate * (update - receiver), the update read off the sharer's cache alone.

    An open gate puts the sharer's cache, mapped to the receiver's dimension, in the place of the receiver's.
    """

    reads_receiver = weighted = residual = False

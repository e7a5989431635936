"""Training: the LightningModule, its callbacks and strategies. Here is what a configuration or a script names."""

from c2c_lightning.training.module import C2CModule
from c2c_lightning.training.sharding import FSDP1, FSDP2

__all__ = ["FSDP1", "FSDP2", "C2CModule"]

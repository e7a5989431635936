"""Training: the LightningModule and its callbacks."""

from c2c_lightning.training.checkpoints import CheckpointWriter, find_checkpoint, run_folder, run_to_resume
from c2c_lightning.training.gate_map import GateMap
from c2c_lightning.training.interruption import Interruption
from c2c_lightning.training.module import C2CModule
from c2c_lightning.training.run_record import RunRecord
from c2c_lightning.training.sharding import FSDP1, FSDP2

__all__ = [
    "FSDP1",
    "FSDP2",
    "C2CModule",
    "CheckpointWriter",
    "GateMap",
    "Interruption",
    "RunRecord",
    "find_checkpoint",
    "run_folder",
    "run_to_resume",
]

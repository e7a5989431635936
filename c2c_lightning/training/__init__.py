"""Training: the LightningModule and its callbacks."""

from c2c_lightning.training.gate_map import GateMap
from c2c_lightning.training.interruption import Interrupted, Interruption
from c2c_lightning.training.module import C2CModule, OptimizerConfig
from c2c_lightning.training.run_record import MLFLOW_FILE, RunRecord, summarize
from c2c_lightning.training.tracking import MLflowTracker

__all__ = [
    "MLFLOW_FILE",
    "C2CModule",
    "GateMap",
    "Interrupted",
    "Interruption",
    "MLflowTracker",
    "OptimizerConfig",
    "RunRecord",
    "summarize",
]

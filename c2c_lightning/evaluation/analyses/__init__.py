"""Analyses: what the caches hold, which layers and tokens matter, who solves what, and how long it takes."""

from c2c_lightning.evaluation.analyses.base import Analysis
from c2c_lightning.evaluation.analyses.cache_enrichment import CacheEnrichment
from c2c_lightning.evaluation.analyses.effective_rank import EffectiveRank
from c2c_lightning.evaluation.analyses.fidelity import Fidelity
from c2c_lightning.evaluation.analyses.fusion_weights import FusionWeights
from c2c_lightning.evaluation.analyses.handed_over import RetentionByBytes
from c2c_lightning.evaluation.analyses.latency import Latency
from c2c_lightning.evaluation.analyses.partial_fusion import FusedFraction, LayerAblation
from c2c_lightning.evaluation.analyses.solved import SolvedVenn, SubjectAccuracy
from c2c_lightning.evaluation.analyses.transformation_oracle import TransformationOracle

__all__ = [
    "Analysis",
    "CacheEnrichment",
    "EffectiveRank",
    "Fidelity",
    "FusedFraction",
    "FusionWeights",
    "Latency",
    "LayerAblation",
    "RetentionByBytes",
    "SolvedVenn",
    "SubjectAccuracy",
    "TransformationOracle",
]

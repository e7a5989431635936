"""Analyses: what the caches hold, which layers and tokens matter, who solves what, and how long it takes."""

from c2c_lightning.evaluation.analyses.base import Analysis
from c2c_lightning.evaluation.analyses.cache_enrichment import CacheEnrichment
from c2c_lightning.evaluation.analyses.effective_rank import EffectiveRank
from c2c_lightning.evaluation.analyses.fused_fraction import FusedFraction
from c2c_lightning.evaluation.analyses.fusion_weights import FusionWeights
from c2c_lightning.evaluation.analyses.latency import Latency
from c2c_lightning.evaluation.analyses.layer_ablation import LayerAblation
from c2c_lightning.evaluation.analyses.solved_venn import SolvedVenn
from c2c_lightning.evaluation.analyses.subject_accuracy import SubjectAccuracy
from c2c_lightning.evaluation.analyses.transformation_oracle import TransformationOracle

__all__ = [
    "Analysis",
    "CacheEnrichment",
    "EffectiveRank",
    "FusedFraction",
    "FusionWeights",
    "Latency",
    "LayerAblation",
    "SolvedVenn",
    "SubjectAccuracy",
    "TransformationOracle",
]

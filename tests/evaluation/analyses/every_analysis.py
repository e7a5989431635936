"""Every analysis, at a size that suits tiny models and six questions."""

from __future__ import annotations

from c2c_lightning.evaluation.analyses import (
    CacheEnrichment,
    EffectiveRank,
    FusedFraction,
    FusionWeights,
    Latency,
    LayerAblation,
    SolvedVenn,
    SubjectAccuracy,
    TransformationOracle,
)

ANALYSES = {
    "effective_rank": EffectiveRank,
    "fusion_weights": FusionWeights,
    "layer_ablation": LayerAblation,
    "fused_fraction": lambda: FusedFraction((50,)),
    "solved_venn": SolvedVenn,
    "subjects": SubjectAccuracy,
    "cache_enrichment": lambda: CacheEnrichment(shots=2),
    "transformation_oracle": lambda: TransformationOracle(tokens=120, hidden=16, epochs=2),
    "latency": lambda: Latency(questions=2, batch_size=2, repeats=1),
}

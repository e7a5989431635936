"""What the pictures of the transformation oracle show."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import pdist

from c2c_lightning.evaluation.analyses.transformation_oracle import near_target, padded


def test_padding_changes_no_distance_within_a_set():
    narrow, wide = np.random.default_rng(0).normal(size=(4, 5)), np.random.default_rng(1).normal(size=(3, 8))
    for before, after in zip((narrow, wide), padded([narrow, wide])):
        assert after.shape == (len(before), 8)
        np.testing.assert_allclose(pdist(after), pdist(before))


def test_the_nearest_token_is_looked_for_among_source_and_target():
    source, target = np.array([[0.0], [1.0], [9.0]]), np.array([[10.0], [11.0]])
    transformed = np.array([[0.4], [10.2], [10.9], [12.0]])
    assert near_target(source, target, transformed) == (3 / 4, 1 / 3)

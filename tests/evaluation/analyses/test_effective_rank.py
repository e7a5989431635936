"""The effective rank of caches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from c2c_lightning.evaluation.analyses import EffectiveRank
from c2c_lightning.evaluation.asking.observing import read_caches
from c2c_lightning.models.alignment import UNALIGNED
from tests.evaluation.asking import observe, one_by_one, part_of


def test_effective_rank_is_that_of_all_real_tokens_together(communicator, questions):
    measured = observe(EffectiveRank(), communicator, [part_of(questions, [0, 1, 2]), part_of(questions, [3, 4, 5])])
    tokens = {"receiver": [], "fused": [], "sharer_0": []}
    for alone in one_by_one(questions):
        caches = read_caches(communicator, alone)
        aligned = caches.batch.sharers[0].positions[0] != UNALIGNED
        assert caches.mask.all()
        for name, stack in (("receiver", caches.receiver), ("fused", caches.fused), ("sharer_0", caches.sharers[0])):
            x_2LNF = stack[:, :, 0].transpose(2, 3).flatten(3)
            tokens[name].append(x_2LNF[:, :, aligned] if name == "sharer_0" else x_2LNF)
    assert sum(x.shape[2] for x in tokens["sharer_0"]) < sum(x.shape[2] for x in tokens["receiver"])
    assert measured.keys() == tokens.keys()
    for name, parts in tokens.items():
        for part in range(2):
            for layer in range(parts[0].shape[1]):
                values = np.linalg.svd(torch.cat([x[part, layer] for x in parts]).double().numpy(), compute_uv=False)
                share = values / values.sum()
                expected = np.exp(-(share * np.log(share)).sum())
                assert measured[name][part, layer].item() == pytest.approx(expected, rel=1e-4)

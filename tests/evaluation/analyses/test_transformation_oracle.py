"""The sample of tokens that the transformation oracle looks at."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.distance import pdist

from c2c_lightning.evaluation.analyses import TransformationOracle
from c2c_lightning.evaluation.analyses.transformation_oracle import near_target, padded, train, unexplained
from c2c_lightning.models.alignment import UNALIGNED
from tests.evaluation.asking import observe, one_by_one, part_of


def test_the_sample_does_not_depend_on_how_questions_are_read_together(communicator, questions):
    together = observe(TransformationOracle(tokens=30), communicator, [part_of(questions, [0, 1, 2, 3, 4, 5])])
    apart = observe(
        TransformationOracle(tokens=30), communicator, [part_of(questions, [5, 2]), part_of(questions, [4, 0, 3, 1])]
    )
    assert len(together["source"]) == 30
    assert torch.equal(together["held_out"], apart["held_out"])
    for name in ("source", "target"):
        torch.testing.assert_close(together[name], apart[name])


def test_no_question_is_in_both_parts_of_the_sample(communicator, questions):
    sample = observe(TransformationOracle(tokens=2000), communicator, [questions])
    lengths = (questions.read(communicator.models).batch.sharers[0].positions != UNALIGNED).sum(1)
    assert len(sample["held_out"]) == lengths.sum()
    for alone, length in zip(one_by_one(questions), lengths):
        held_out = observe(TransformationOracle(tokens=2000), communicator, [alone])["held_out"]
        assert len(held_out) == length
        assert held_out.all() or not held_out.any()


def test_the_oracle_tells_what_can_be_mapped_from_what_cannot():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(1200, 2, 8, generator=generator)
    target = torch.randn(1200, 2, 6, generator=generator)
    target[:, 0] = 3 + 5 * source[:, 0] @ torch.randn(8, 6, generator=generator)
    mapping = train(source[:900], target[:900], hidden=32, epochs=40, seed=0)
    with torch.no_grad():
        mapped, noise = unexplained(mapping(source[900:]), target[900:])
    assert mapped < 0.05
    assert noise > 0.9


def test_training_gives_the_same_in_whatever_mode_the_caller_is():
    def trained() -> torch.Tensor:
        source, target = torch.linspace(0, 1, 240).view(2, 20, 2, 3)
        mapping = train(source, target, hidden=8, epochs=2, seed=0)
        with torch.no_grad():
            return mapping(source)

    with torch.inference_mode():
        in_inference_mode = trained()
    with torch.no_grad():
        without_gradients = trained()
    assert torch.equal(in_inference_mode, without_gradients)


def test_padding_changes_no_distance_within_a_set():
    narrow, wide = np.random.default_rng(0).normal(size=(4, 5)), np.random.default_rng(1).normal(size=(3, 8))
    for before, after in zip((narrow, wide), padded([narrow, wide])):
        assert after.shape == (len(before), 8)
        np.testing.assert_allclose(pdist(after), pdist(before))


def test_the_nearest_token_is_looked_for_among_source_and_target():
    source, target = np.array([[0.0], [1.0], [9.0]]), np.array([[10.0], [11.0]])
    transformed = np.array([[0.4], [10.2], [10.9], [12.0]])
    assert near_target(source, target, transformed) == (3 / 4, 1 / 3)

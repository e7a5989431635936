"""The sample of tokens that the transformation oracle looks at."""

from __future__ import annotations

import torch

from c2c_lightning.evaluation.analyses import TransformationOracle
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

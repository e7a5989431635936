"""How long answers take."""

from __future__ import annotations

import pytest

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses import Latency


def test_the_stages_of_an_answer_add_up_to_its_total(communicator, answered):
    latency = Latency(questions=3, repeats=3)
    methods = latency.chosen(answered)
    assert [m.name for m in methods] == ["receiver", "sharer", "text_to_text", "c2c", "c2c_after_text"]
    for by_method in (latency.measure(communicator, answered, methods, size) for size in (1, 3)):
        for timings in by_method.values():
            sums = [sum(t.stages.values()) / t.total for t in timings]
            assert 0.95 < max(sums) <= 1.0  # whatever else the machine does meanwhile
            assert all(0 < t.first_token < t.total for t in timings)


def test_a_method_that_the_evaluation_lacks_cannot_be_timed(communicator):
    with pytest.raises(UserError, match="'receivr'"):
        Latency(methods=["receivr"]).check(communicator, ["receiver", "c2c"])

"""How long answers take."""

from __future__ import annotations

import pandas as pd
import pytest

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses import Latency
from c2c_lightning.evaluation.analyses.latency import COLUMNS, METHODS, STAGES


def test_the_stages_of_an_answer_add_up_to_its_total(communicator, answered):
    latency = Latency(questions=3, repeats=3)
    methods = [answered.methods[name] for name in METHODS]
    for size in (1, 3):
        timings = pd.DataFrame(latency.measure(communicator, answered, methods, size), columns=COLUMNS)
        for _, of_method in timings.groupby("method"):
            shares = of_method[[*STAGES]].sum(axis=1) / of_method["total"]
            assert 0.95 < shares.max() <= 1.0  # whatever else the machine does meanwhile
            assert (of_method["first token"] < of_method["total"]).all()
            assert (of_method["first token"] > 0).all()


def test_a_method_that_the_evaluation_lacks_cannot_be_timed(communicator):
    with pytest.raises(UserError, match="'receivr'"):
        Latency(methods=["receivr"]).check(communicator, ["receiver", "c2c"])

"""Scores by subject."""

from __future__ import annotations

import numpy as np
import pandas as pd

from c2c_lightning.evaluation.analyses import SubjectAccuracy
from c2c_lightning.evaluation.analyses.solved import regions_of
from tests.evaluation.invented import Invented, right
from tests.evaluation.invented import results as invented_results


def test_real_scores_are_not_called_accuracy(tmp_path, communicator):
    for results, measure, other in (
        (invented_results({"receiver": np.linspace(0, 1, 40), "c2c": np.linspace(0.2, 1, 40)}), "Score", "ccuracy"),
        (invented_results({"receiver": right(10, 40), "c2c": right(30, 40)}), "Accuracy", "core"),
    ):
        section = SubjectAccuracy().section(communicator, results, tmp_path)
        assert f"{measure} by subject" in section.tables
        assert section.text.startswith(measure)
        assert other not in section.text


def test_without_subjects_there_is_nothing_to_say(tmp_path, communicator):
    scores = {"receiver": right(10, 40), "c2c": right(30, 40)}
    assert SubjectAccuracy().section(communicator, invented_results(scores), tmp_path) is not None
    results = invented_results(scores, Invented(40, subjects=()))
    assert SubjectAccuracy().section(communicator, results, tmp_path) is None


def test_every_question_is_in_one_region_of_the_diagram():
    solved = pd.DataFrame({"receiver": [1, 1, 0, 0, 0], "sharer": [0] * 5, "c2c": [0, 1, 1, 1, 0]}).astype(bool)
    regions = regions_of(solved)
    assert len(regions) == 8
    assert {members: n for members, n in regions.items() if n} == {
        (False, False, False): 1,
        (True, False, False): 1,
        (False, False, True): 2,
        (True, False, True): 1,
    }

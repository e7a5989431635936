"""Who solves what."""

from __future__ import annotations

from c2c_lightning.evaluation.analyses.solved_venn import regions_of


def test_every_question_is_in_one_region_of_the_diagram():
    solved = {"receiver": {0, 1}, "sharer": set(), "c2c": {1, 2, 3}}
    regions = regions_of(solved)
    assert len(regions) == 7
    assert {members: n for members, n in regions.items() if n} == {
        (True, False, False): 1,
        (False, False, True): 2,
        (True, False, True): 1,
    }

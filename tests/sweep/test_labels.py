"""How a sweep spells scores."""

import pytest

from c2c_lightning.sweep.labels import shown_score


@pytest.mark.parametrize(
    ("metric", "shown"),
    [("val/accuracy/c2c", "50.0%"), ("gate/open", "50.0%"), ("val/loss", "0.5")],
)
def test_a_score_is_spelled_as_at_the_end_of_a_run(metric, shown):
    assert shown_score(0.5, metric) == shown

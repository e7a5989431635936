"""What every analysis promises."""

from __future__ import annotations

import pytest
import torch

from c2c_lightning.evaluation.analyses import Analysis, EffectiveRank, FusionWeights
from c2c_lightning.evaluation.asking.observing import Observer
from c2c_lightning.fuser import GateConfig
from tests.evaluation.analyses.every_analysis import ANALYSES
from tests.evaluation.asking import observe
from tests.evaluation.invented import results as invented_results
from tests.evaluation.invented import right
from tests.models import tiny


@pytest.mark.parametrize("name", ANALYSES)
def test_every_section_has_words_a_table_and_pictures(communicator, answered, questions, tmp_path, name):
    analysis = ANALYSES[name]()
    if isinstance(analysis, Observer):
        analysis.measured[answered.benchmark.name] = observe(analysis, communicator, [questions])
    section = analysis.section(communicator, answered, tmp_path / "figures")
    assert section.title
    assert "{" not in section.text
    assert section.tables and section.figures  # noqa: PT018
    for table in section.tables.values():
        assert len(table)
        assert table.map(lambda cell: isinstance(cell, str)).all(axis=None)
    for figure in section.figures.values():
        assert figure.parent == tmp_path / "figures"
        assert figure.read_bytes()[:4] == b"\x89PNG"


def test_pictures_are_drawn_of_several_sharers_gates_by_head_and_one_part_only(questions, tmp_path):
    gate = GateConfig(granularity="head", parts="keys")
    communicator = tiny.communicator("qwen3", "qwen2", "llama", gate=gate)
    with torch.no_grad():
        communicator.fusers.gates[0].logit[0, 0, 1] = -1.0
        communicator.fusers.gates[1].logit[0, 1] = -1.0
    results = invented_results({"receiver": right(3, 6), "c2c": right(5, 6)})
    for analysis in (EffectiveRank(), FusionWeights()):
        analysis.measured[results.benchmark.name] = observe(analysis, communicator, [questions])
        section = analysis.section(communicator, results, tmp_path)
        assert all(figure.exists() for figure in section.figures.values())


def test_an_analysis_without_a_section_is_refused():
    class Mute(Analysis):
        pass

    with pytest.raises(TypeError, match="section"):
        Mute()

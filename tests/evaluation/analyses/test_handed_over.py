"""Slots in fewer bits and of fewer tokens: what is handed over shrinks, and the section says what is left."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses import RetentionByBytes
from c2c_lightning.evaluation.analyses.handed_over import Packed
from c2c_lightning.evaluation.asking.methods import C2C, Asking
from c2c_lightning.evaluation.asking.questions import Questions
from c2c_lightning.evaluation.benchmarks import NanoWorld
from c2c_lightning.evaluation.report.findings import collect
from c2c_lightning.fuser import Fusers
from c2c_lightning.mapper import Prefix
from tests.evaluation.asking import told_pair


@pytest.fixture(scope="module")
def asking() -> Asking:
    """Of the built-in pair, with a mapper that makes something else of every text."""
    benchmark = NanoWorld(limit=6, told=True, context="sharer")
    items = benchmark.items()
    return Asking.of(told_pair(), Questions(benchmark, items, [*items[1:], items[0]]))


def keys(method: C2C, asking: Asking) -> torch.Tensor:
    return method.prefill(asking).cache.layers[-1].keys


def test_all_bits_of_all_tokens_are_c2c_and_fewer_bits_come_near(asking):
    c2c = keys(C2C(), asking)
    assert torch.equal(keys(Packed(32), asking), c2c)
    errors = [(keys(Packed(bits), asking) - c2c).abs().max() for bits in (16, 8, 4)]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.2 * c2c.abs().max()


def test_bytes_are_those_of_what_is_packed(asking):
    reading = asking.reading
    numbers = reading.batch.private.numbers
    entries = (numbers * reading.mapped[:, :, 0].numel()).tolist()
    assert C2C().prefill(asking).handed_over == [4 * n for n in entries]
    assert Packed(16).prefill(asking).handed_over == [2 * n for n in entries]
    for bits in (8, 4):
        packed = Packed(bits).prefill(asking).handed_over
        assert all(n * bits / 8 < number < 2 * n for n, number in zip(entries, packed))
    half = Packed(16, 50).prefill(asking)
    kept = (numbers + 1) // 2
    assert half.handed_over == (kept * (2 * reading.mapped[:, :, 0].numel() + 4)).tolist()
    assert half.mask.sum(1).tolist() == (reading.batch.prompt_mask.sum(1) - numbers + kept).tolist()


def test_the_section_has_retention_beside_bytes_with_a_picture(asking, tmp_path):
    analysis, benchmark = RetentionByBytes(bits=(8,), percentages=(50,)), asking.questions.benchmark
    methods = analysis.methods(Communicator(asking.models, asking.fusers))
    assert [method.name for method in methods] == ["receiver", "reads_it", "c2c", "bits_8", "kept_50"]
    kept = {method.name: {answer.id: answer for answer in method.answer(asking)} for method in methods}
    section = analysis.section(None, collect(benchmark, methods, kept, seed=0), tmp_path)
    [table] = section.tables.values()
    assert table[""].tolist() == ["C2C", "bits_8", "kept_50"]
    assert all("%" in cell for cell in table["retention"])
    [figure] = section.figures.values()
    assert figure.read_bytes()[:4] == b"\x89PNG"
    for sizes in ({"bits": (8,), "percentages": ()}, {"bits": (), "percentages": ()}):
        section = RetentionByBytes(**sizes).section(None, collect(benchmark, methods, kept, seed=0), tmp_path)
        assert section.figures
    few = {name: kept[name] for name in ("receiver", "c2c", "bits_8", "kept_50")}
    assert analysis.section(None, collect(benchmark, methods, few, seed=0), tmp_path) is None


def test_it_is_refused_where_nothing_is_handed_over(asking):
    trainer = SimpleNamespace(datamodule=SimpleNamespace(benchmarks=[NanoWorld(limit=2)]))
    with pytest.raises(UserError, match="in no benchmark does the sharer alone read a text"):
        RetentionByBytes().setup(trainer, None, "test")
    trainer.datamodule.benchmarks.append(asking.questions.benchmark)
    RetentionByBytes().setup(trainer, None, "test")
    shapes = asking.models.receiver_shape, asking.models.sharer_shapes
    for fusers in (Fusers(*shapes), Fusers(*shapes, fuser=None, mapper=Prefix)):
        with pytest.raises(UserError, match="the fuser has no mapper"):
            RetentionByBytes().check(Communicator(asking.models, fusers), [])
    assert Packed(8).why_not(NanoWorld(limit=2)) == "the sharer reads no texts alone"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"bits": (5,)}, r"bits of RetentionByBytes are \[5\]"),
        ({"percentages": (100,)}, r"are \[100\]: give some between"),
    ],
)
def test_sizes_that_there_are_not_are_refused(arguments, said):
    with pytest.raises(UserError, match=said):
        RetentionByBytes(**arguments)

"""How near slots come to reading the text, before anything is answered."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses import Fidelity
from c2c_lightning.evaluation.analyses.fidelity import attentions, read_again
from c2c_lightning.evaluation.asking.methods import Asking, ReadsIt
from c2c_lightning.evaluation.asking.questions import Questions
from c2c_lightning.evaluation.benchmarks import OwnQuestions
from c2c_lightning.fuser import Fusers
from c2c_lightning.mapper import RidgeMapper
from c2c_lightning.models import FrozenModels, load_aligner, load_models
from c2c_lightning.models.cache import position_ids
from tests.evaluation.asking import observe, one_by_one, part_of
from tests.evaluation.invented import results as invented_results
from tests.evaluation.invented import right
from tests.evaluation.trained import PAIR, evaluate
from tests.models import tiny
from tests.models.test_private_text import ASKED, TEXTS, to_itself


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Questions:
    """Questions about texts, and one without a text."""
    path = tmp_path_factory.mktemp("told") / "told.jsonl"
    rows = [{"question": q, "reference": "Oslo", "context": t} for q, t in zip([*ASKED, "Who?"], [*TEXTS, ""])]
    path.write_text("\n".join(map(json.dumps, rows)))
    benchmark = OwnQuestions(str(path), context="sharer", prompt="plain")
    return Questions(benchmark, items := benchmark.items(), items[::-1])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_model_told_by_itself_is_as_one_that_reads_and_slots_that_say_nothing_are_not(told, family):
    model = to_itself(family)
    questions = part_of(told, range(4))
    batch = questions.read(model.models).batch
    text = batch.private
    # The receiver reads the tokens of the slots, without what stands between text and question.
    text.read_ids, text.read_mask = batch.prompt_ids.clone(), batch.prompt_mask
    text.read_ids[:, :-1] = (
        text.read_ids[:, :-1].flatten().index_copy(0, text.slots, text.ids.flatten()[text.tokens]).view(4, -1)
    )
    found = observe(Fidelity(), model, [questions])
    assert found["cosine"].shape == (3, 2, model.models.receiver_shape.num_layers)  # one has no text
    assert (found["cosine"][:, 0] > 0.999).all()
    assert found["kl"][:, 0].abs().max() < 1e-3
    assert found["same"][:, 0].all()
    assert (found["cosine"][:, 1].mean(0) < 0.95).all()
    assert found["kl"][:, 1].mean() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_read_again_is_what_was_read(told, family):
    model = to_itself(family, template=None)
    start = ReadsIt().prefill(Asking.of(model, part_of(told, range(4))))
    rest_B = torch.tensor([3, 0, 5, 2])
    outputs, log_probs_BV = read_again(start, rest_B)
    whole: list[torch.Tensor] = []
    hooks = [each.register_forward_hook(lambda _, __, out: whole.append(out[0])) for each in attentions(start.model)]
    logits = start.model(input_ids=start.ids, attention_mask=start.mask, position_ids=position_ids(start.mask)).logits
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(log_probs_BV, logits[:, -1].log_softmax(-1), rtol=1e-3, atol=1e-3)
    for row, rest in enumerate(rest_B.tolist()):
        for layer, of_all in zip(outputs, whole):
            torch.testing.assert_close(layer[row, : rest + 1], of_all[row, -rest - 1 :], rtol=1e-3, atol=1e-3)


def test_batches_of_any_size_give_the_same(told):
    model = to_itself("mistral")
    together = observe(Fidelity(), model, [told])
    torch.testing.assert_close(observe(Fidelity(), model, one_by_one(told)), together, rtol=1e-3, atol=1e-3)


def test_the_section_has_intervals_over_questions_and_a_picture(told, tmp_path):
    analysis, model, results = Fidelity(), to_itself("qwen2"), invented_results({"c2c": right(3, 4)})
    analysis.measured[results.benchmark.name] = observe(analysis, model, [told])
    section = analysis.section(model, results, tmp_path)
    first, layers = section.tables.values()
    assert first[""].tolist() == ["C2C", "nothing_said"]
    assert all("[" in cell for cell in first.iloc[:, 1:].to_numpy().flatten())
    assert layers["receiver layer"].tolist() == ["0", "1", "2"]
    [figure] = section.figures.values()
    assert figure.read_bytes()[:4] == b"\x89PNG"


def test_of_questions_without_a_text_there_is_no_section(questions, tmp_path):
    analysis, model, results = Fidelity(), to_itself("qwen2"), invented_results({"c2c": right(3, 4)})
    analysis.measured[results.benchmark.name] = observe(analysis, model, [questions])
    assert analysis.section(model, results, tmp_path) is None


def test_it_is_refused_where_nothing_is_handed_over(told, questions):
    trainer = SimpleNamespace(datamodule=SimpleNamespace(benchmarks=[questions.benchmark]))
    with pytest.raises(UserError, match="has Fidelity, but in no benchmark does the sharer alone read a text"):
        Fidelity().setup(trainer, None, "test")
    trainer.datamodule.benchmarks.append(told.benchmark)
    Fidelity().setup(trainer, None, "test")
    model = to_itself("qwen2")
    Fidelity().check(model, [])
    with pytest.raises(UserError, match="has Fidelity, but the fuser has no mapper"):
        Fidelity().check(Communicator.fresh(model.models), [])


def test_an_evaluation_that_goes_on_does_not_measure_again(tmp_path, monkeypatch):
    models = FrozenModels(*load_models(*PAIR.values()), load_aligner(*PAIR.values()))
    fusers = Fusers(models.receiver_shape, models.sharer_shapes, fuser=None, mapper=RidgeMapper)
    Communicator(models, fusers).save_pretrained(tmp_path / "fuser")
    args = [
        "--model.methods=[{class_path: Receiver}, {class_path: C2C}]",
        "--model.controls=[]",
        "--data.benchmarks=[{class_path: NanoWorld, init_args: {told: true, context: sharer, limit: 4}}]",
        "--data.batch_size=3",
        "--trainer.callbacks=[{class_path: Fidelity}]",
    ]
    first = evaluate(tmp_path / "fuser", tmp_path / "evaluation", *args)
    report = (first.folder / "report.md").read_text()
    assert "Fidelity before use" in report
    assert "Means over 4 questions" in report
    (first.folder / "answers" / "nano" / "c2c.jsonl").unlink()
    monkeypatch.setattr(Fidelity, "metric", lambda *_: pytest.fail("it is measured already"))
    evaluate(tmp_path / "fuser", tmp_path / "evaluation", *args)
    section = report[report.index("Fidelity before use") : report.index("How to read this")]
    assert section in (first.folder / "report.md").read_text()

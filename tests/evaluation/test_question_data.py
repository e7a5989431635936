"""Questions of a benchmark as training data: what is trained on is what is asked."""

import json

import pytest

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.benchmarks import OwnQuestions, QuestionData

QUESTIONS = [
    {"question": f"Which country is {city} in?", "choices": ["Norway", "Italy", "Peru", "Japan"], "answer": answer}
    for city, answer in (("Oslo", "A"), ("Rome", "B"), ("Lima", "C"), ("Kyoto", "D"), ("Bergen", "A"), ("Pisa", "B"))
]


@pytest.fixture
def file(tmp_path):
    def write(name, questions):
        (tmp_path / name).write_text("".join(f"{json.dumps(question)}\n" for question in questions))
        return str(tmp_path / name)

    return write


def test_a_response_is_the_letter_or_the_text_as_the_benchmark_is_answered(file):
    path = file("train.jsonl", QUESTIONS)
    letters = QuestionData(OwnQuestions(path), val_fraction=0).train_examples()
    texts = QuestionData(OwnQuestions(path, answer_mode="likelihood"), val_fraction=0).train_examples()
    assert [example.response[-1] for example in letters] == list("ABCDAB")
    assert [example.response for example in texts] == ["Norway", "Italy", "Peru", "Japan", "Norway", "Italy"]
    benchmark = OwnQuestions(path, answer_mode="likelihood")
    assert [example.prompt for example in texts] == [benchmark.messages(item) for item in benchmark.items()]


def test_no_question_of_validation_is_trained_on(file, caplog):
    training, validation = file("train.jsonl", QUESTIONS), file("val.jsonl", QUESTIONS[4:])
    data = QuestionData(OwnQuestions(training), OwnQuestions(validation))
    assert [len(data.train_examples()), len(data.val_examples())] == [4, 2]
    assert "2 questions of validation, or about its texts, are left out of training" in caplog.text
    with pytest.raises(UserError, match=r"has no question that data\.val_benchmark"):
        QuestionData(OwnQuestions(validation), OwnQuestions(training)).train_examples()


def test_the_questions_held_out_are_the_same_in_every_run(file):
    parts = [QuestionData(OwnQuestions(file("q.jsonl", QUESTIONS)), val_fraction=0.3, seed=seed) for seed in (1, 2)]
    held_out = [[example.source for example in data.val_examples()] for data in parts]
    assert held_out[0] == held_out[1]
    assert held_out[0] == ["own: q/2", "own: q/3"]
    assert not set(held_out[0]) & {example.source for example in parts[0].train_examples()}
    with pytest.raises(UserError, match=r"has one question, of which data\.val_fraction 0\.05 cannot be held out"):
        QuestionData(OwnQuestions(file("one.jsonl", QUESTIONS[:1]))).train_examples()


def test_fit_trains_on_the_questions_of_a_benchmark(file, fit):
    path = file("train.jsonl", QUESTIONS)
    run = fit("--data=QuestionData", "--data.benchmark=OwnQuestions", f"--data.benchmark.path={path}",
              "--data.benchmark.answer_mode=likelihood", "--data.val_fraction=0.3", "--trainer.max_steps=2")  # fmt: skip
    assert run.summary["steps"] == 2
    assert run.summary["metrics"]["val/loss"] > 0


def test_no_text_of_the_questions_held_out_is_trained_on(file):
    about = [{**question, "context": f"Text {i // 2}."} for i, question in enumerate(QUESTIONS)]
    data = QuestionData(OwnQuestions(file("q.jsonl", about), context="sharer"), val_fraction=0.3)
    held, kept = ({e.prompt[0]["private"] for e in part} for part in (data.val_examples(), data.train_examples()))
    assert len(held) == 1
    assert not held & kept
    one = OwnQuestions(file("one.jsonl", about[:2]), context="sharer")
    with pytest.raises(UserError, match="questions about one text"):
        QuestionData(one).train_examples()

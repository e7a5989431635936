"""Tasks of the harness as benchmarks: asked by this project's methods, scored as the harness itself scores them."""

from __future__ import annotations

import json

import lm_eval
import pytest
from jsonargparse import ArgumentParser
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.asking.methods import C2C, Receiver
from c2c_lightning.evaluation.asking.questions import Questions
from c2c_lightning.evaluation.asking.text_to_text import TextToText
from c2c_lightning.evaluation.benchmarks import Benchmark, HarnessTask
from c2c_lightning.evaluation.harness import tasks
from tests.evaluation.asking import ask
from tests.evaluation.harness.some_requests import TASKS

ARC = {
    "id": "q",
    "question": "Why?",
    "choices": {"text": ["so", "because it is"], "label": ["1", "2"]},
    "answerKey": "2",
}


@pytest.fixture(scope="module", autouse=True)
def found():
    """The harness's own tasks take seconds to find, so they are found once."""
    ours, all_of_them = tasks.Tasks(str(TASKS)), tasks.Tasks(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "find_tasks", lambda path: ours if path else all_of_them)
        yield


def mine(task: str, **kwargs) -> HarnessTask:
    return HarnessTask(task, include_path=str(TASKS), **kwargs)


def questions(benchmark: Benchmark) -> Questions:
    items = benchmark.items()
    return Questions(benchmark, items, items[1:] + items[:1])


@pytest.mark.parametrize("task", ["nano_choices", "nano_answers", "nano_begun", "nano_begun_choices"])
@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_the_receiver_alone_is_scored_as_by_the_harness_itself(communicator, task, num_fewshot):
    receiver, tokenizer = communicator.models.receiver, communicator.models.aligner.receiver
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=receiver, tokenizer=tokenizer, batch_size=1, device="cpu"),
        tasks=[task],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        num_fewshot=num_fewshot,
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    benchmark = mine(task, num_fewshot=num_fewshot)
    answers = ask(Receiver(), communicator, questions(benchmark))
    for answer, sample in zip(answers, theirs["samples"][task]):
        if benchmark.by_likelihood:
            assert answer.choices == pytest.approx([resps[0][0] for resps in sample["resps"]], abs=1e-4)
        else:
            assert answer.response == sample["resps"][0][0].strip()
        assert {name: sample[name.partition(",")[0]] for name in answer.metrics} == answer.metrics
    for name in answers[0].metrics:
        mean = sum(answer.metrics[name] for answer in answers) / len(answers)
        assert mean == pytest.approx(theirs["results"][task][name if "," in name else f"{name},none"])


def test_exemplars_are_earlier_turns_or_text_and_the_same_every_time():
    chat, text = mine("nano_choices", num_fewshot=2), mine("nano_choices", num_fewshot=2, apply_chat_template=False)
    item = chat.items()[0]
    assert [m["role"] for m in chat.messages(item)] == ["user", "assistant", "user", "assistant", "user"]
    (message,) = text.messages(text.items()[0])
    assert message["content"].count("?") == 3
    assert message["content"].endswith(item.question)
    assert mine("nano_choices", num_fewshot=2).items() == chat.items()
    told = mine("nano_choices", system_instruction="Be brief.")
    assert told.messages(told.items()[0])[0] == {"role": "system", "content": "Be brief."}


def test_every_method_is_put_to_a_task(communicator):
    for task in ("nano_choices", "nano_begun"):
        for method in (C2C(), TextToText(max_message_tokens=4)):
            answers = ask(method, communicator, questions(mine(task)))
            assert all(answer.metrics for answer in answers)


def test_a_published_task_reads_a_file_in_place_of_the_hubs(tmp_path):
    file, exemplars = tmp_path / "arc.jsonl", tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({**ARC, "id": str(i)}) + "\n" for i in range(3)))
    exemplars.write_text(json.dumps({**ARC, "question": "How?"}) + "\n")
    benchmark = HarnessTask("arc_challenge", str(file), metric="acc_norm", limit=2)
    assert (benchmark.name, len(benchmark.items())) == ("arc_challenge", 2)
    item = benchmark.items()[0]
    assert (item.answers, item.choices) == (("B",), ("so", "because it is"))
    assert benchmark.messages(item) == [{"role": "user", "content": "Question: Why?\nAnswer:"}]
    grade = benchmark.grade_choices(item, [-2.0, -6.5])
    assert (grade.score, grade.metrics) == (1.0, {"acc": 0.0, "acc_norm": 1.0})
    shown = HarnessTask("arc_challenge", str(file), num_fewshot=1, exemplars=str(exemplars))
    assert [m["content"] for m in shown.messages(shown.items()[0])] == [
        "Question: How?\nAnswer:",
        "because it is",
        "Question: Why?\nAnswer:",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("table.tsv", r"path '.*table\.tsv': give one file of \.jsonl, \.json, \.parquet, \.csv"),
        ("folder", "path '.*folder': give one file of"),
        (
            "cut.jsonl",
            r"task nano_choices of .*cut\.jsonl cannot be loaded: JSON parse error: ",
        ),
    ],
)
def test_a_file_that_a_task_cannot_read_is_refused_with_what_is_wrong(name, message, tmp_path):
    if name == "folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text('{"question": "Why?"}\n{"question": "cut o\n')
    with pytest.raises(UserError, match=message):
        mine("nano_choices", path=str(tmp_path / name)).items()


def test_an_answer_to_train_on_begins_with_the_words_that_the_task_gives():
    begun, plain = mine("nano_begun"), mine("nano_answers")
    for item, other in zip(begun.items(), plain.items()):
        assert begun.response(item) == f"{begun.first_words(item)} {plain.response(other)}"


def test_filters_and_metrics_are_the_tasks_own(tmp_path):
    file = tmp_path / "gsm8k.jsonl"
    file.write_text(json.dumps({"question": "How many?", "answer": "3 + 4 = 7\n#### 7"}) + "\n")
    benchmark = HarnessTask("gsm8k", str(file), metric="exact_match,flexible-extract", num_fewshot=0)
    (item,) = benchmark.items()
    grade = benchmark.grade(item, "It is 7.")
    assert (grade.extracted, grade.score) == ("7.", 1.0)
    assert grade.metrics == {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 1.0}
    assert benchmark.stops(item) == ["Question:", "</s>", "<|im_end|>"]


def test_a_group_is_one_benchmark_with_its_tasks_as_subjects():
    benchmark = mine("nano_all_choices", limit=7)
    assert {item.subject for item in benchmark.items()} == {"nano_choices", "nano_begun_choices"}


def test_the_middle_of_long_questions_is_cut_out_when_asked_for():
    whole, cut = mine("nano_choices"), mine("nano_choices", max_context_characters=9)
    text = whole.items()[0].question
    assert cut.items()[0].question == text[:5] + text[-4:]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"task": "nano_choises"}, r"no task 'nano_choises'\. Did you mean nano_choices\?"),
        ({"task": "nano_perplexity"}, "nano_perplexity asks for loglikelihood_rolling, and a sharer hands over"),
        ({"task": "nano_fill_in"}, "nano_fill_in gives each choice a prompt of its own.*Try the command lm-eval"),
        ({"task": "nano_choices", "metric": "acc_nrm"}, r"metric is 'acc_nrm', which .*\. Did you mean acc_norm\?"),
        ({"task": "nano_choices", "path": "nowhere.jsonl"}, "path 'nowhere.jsonl': no such file"),
        ({"task": "nano_choices", "path": "questions.jsonl", "num_fewshot": 2}, "name a file for exemplars"),
        ({"task": "nano_all_choices", "path": "questions.jsonl"}, "stands for several tasks, but the files are of one"),
        (
            {"task": "nano_a*", "name": "all"},
            r"some tasks of 'nano_a\*' rank choices and others do not; name them apart",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(kwargs, message):
    with pytest.raises(UserError, match=message):
        mine(**kwargs).items()


def test_a_metric_that_is_no_score_of_a_question_is_told():
    benchmark = mine("nano_choices", metric="brier_score")
    with pytest.raises(UserError, match=r"metric 'brier_score' gave .*give one of acc, acc_norm"):
        benchmark.grade_choices(benchmark.items()[0], [-1.0, -2.0, -3.0, -4.0])


def test_it_is_made_from_a_configuration():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--benchmark", type=Benchmark)
    init_args = {"task": "nano_choices", "include_path": str(TASKS), "limit": 3}
    config = {"class_path": "c2c_lightning.evaluation.benchmarks.HarnessTask", "init_args": init_args}
    benchmark = parser.instantiate_classes(parser.parse_object({"benchmark": config})).benchmark
    assert len(benchmark.items()) == 3

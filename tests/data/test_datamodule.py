"""Instruction data as a user gives it: real text, what is held out, what is left out, what is refused."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from pathlib import Path

import lightning as L
import pytest
import torch
from some_data import LONG, pairs, write_jsonl

from c2c_lightning.cli.commands import main
from c2c_lightning.data import InstructionData
from c2c_lightning.errors import UserError
from c2c_lightning.models import Aligner, ChatConfig
from tests.training.runs import BASE


def responses(examples) -> list[str]:
    return [example.response for example in examples]


def test_real_questions_are_tokenized_as_the_models_read_them(gsm8k, aligner):
    path, val_path = str(gsm8k / "train.jsonl"), str(gsm8k / "test.jsonl")
    data = InstructionData(path, val_path=val_path, batch_size=7, exact_answers=True, aligner=aligner)
    examples = {example.response: example for example in data.train_examples()}
    assert (len(examples), len(data.val_examples())) == (60, 20)
    seen = []
    for batch in data.train_dataloader():
        prompts = [row[mask.bool()].tolist() for row, mask in zip(batch.prompt_ids, batch.prompt_mask)]
        responses = [row[mask.bool()].tolist() for row, mask in zip(batch.response_ids, batch.response_mask)]
        for prompt, response, reference in zip(prompts, responses, batch.references):
            aligned = aligner.prompt(examples[reference].prompt)
            assert prompt == aligned.receiver_ids
            assert response == aligner.response_ids(examples[reference].messages, aligned)
        seen += batch.references
    assert sorted(seen) == sorted(examples)


def test_the_same_records_are_held_out_whatever_the_seed(gsm8k):
    parts = [InstructionData(str(gsm8k / "train.jsonl"), val_fraction=0.1, seed=seed) for seed in (1, 2)]
    held_out = [responses(data.val_examples()) for data in parts]
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 6
    training = responses(parts[0].train_examples())
    assert not set(training) & set(held_out[0])
    assert len(training) == 54


def test_conversations_are_held_out_whole(tmp_path):
    turns = [{"role": role, "content": f"{role} {i}"} for i in range(3) for role in ("user", "assistant")]
    records = [{"messages": [{"role": "system", "content": f"chat {i}"}, *turns]} for i in range(30)]
    data = InstructionData(write_jsonl(tmp_path / "chats.jsonl", records), val_fraction=0.2, supervise="every")
    chats = [Counter(e.prompt[0]["content"] for e in part) for part in (data.train_examples(), data.val_examples())]
    assert [len(part) for part in chats] == [24, 6]
    assert all(count == 3 for part in chats for count in part.values())
    assert not chats[0].keys() & chats[1].keys()


@pytest.mark.parametrize(("val_fraction", "num_held_out"), [(0, 0), (0.001, 1), (0.99, 1)])
def test_at_least_one_record_is_held_out_and_one_is_left(val_fraction, num_held_out, tmp_path):
    data = InstructionData(write_jsonl(tmp_path / "two.jsonl", pairs(2)), val_fraction=val_fraction)
    assert (len(data.train_examples()), len(data.val_examples())) == (2 - num_held_out, num_held_out)


def test_a_stream_is_validated_on_val_path(gsm8k, aligner):
    path, val_path = str(gsm8k / "train.jsonl"), str(gsm8k / "test.jsonl")
    data = InstructionData(path, val_path=val_path, streaming=True, exact_answers=True, aligner=aligner)
    validated = [answer for batch in data.val_dataloader() for answer in batch.references]
    assert validated == responses(data.val_examples())
    assert not set(validated) & {answer for batch in data.train_dataloader() for answer in batch.references}


def test_a_stream_without_val_path_has_no_validation_and_says_so(gsm8k, aligner, caplog):
    with caplog.at_level(logging.WARNING):
        data = InstructionData(str(gsm8k / "train.jsonl"), streaming=True, aligner=aligner)
    assert "data.streaming without data.val_path: there is no validation." in caplog.messages
    assert data.val_dataloader() == []


@pytest.mark.parametrize("streaming", [False, True])
def test_an_example_that_is_too_long_is_left_out_and_counted_and_never_cut(streaming, tmp_path, aligner):
    file = write_jsonl(tmp_path / "data.jsonl", [LONG, *pairs(20), LONG])
    data = InstructionData(
        file, val_fraction=0, streaming=streaming, batch_size=4, max_length=200, exact_answers=True, aligner=aligner
    )
    batches = list(data.train_dataloader())
    assert sum(batch.skipped.get("too_long", 0) for batch in batches) == 2
    assert sorted(a for batch in batches for a in batch.references if a) == sorted(f"answer {i}" for i in range(20))
    assert all(batch.prompt_ids.shape[1] + batch.response_ids.shape[1] <= 200 for batch in batches)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("held_out", [False, True])
def test_data_that_are_all_too_long_are_refused_before_a_run_begins(streaming, held_out, tmp_path, aligner):
    long, usable = write_jsonl(tmp_path / "long.jsonl", [LONG] * 3), write_jsonl(tmp_path / "usable.jsonl", pairs(3))
    path, val_path = (usable, long) if held_out else (long, usable)
    data = InstructionData(path, val_path=val_path, streaming=streaming, max_length=200, aligner=aligner)
    with pytest.raises(ValueError, match=r"^no example can be used, .* data\.max_length is 200") as error:
        data.setup("fit")
    assert f"{long}:1: it has " in str(error.value)


@pytest.fixture
def strict_aligner(aligner: Aligner) -> Aligner:
    """A receiver whose template takes no system message, as Gemma's and Mistral's did."""
    receiver = pickle.loads(pickle.dumps(aligner.receiver))
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    receiver.chat_template = refusal + receiver.chat_template
    return Aligner(receiver, aligner.sharers)


SYSTEM = {"messages": [{"role": role, "content": role} for role in ("system", "user", "assistant")]}


def test_a_record_that_a_chat_template_refuses_is_left_out_and_counted(tmp_path, strict_aligner, caplog):
    file = write_jsonl(tmp_path / "data.jsonl", [*pairs(20), SYSTEM])
    data = InstructionData(file, val_fraction=0, exact_answers=True, aligner=strict_aligner)
    batches = list(data.train_dataloader())
    assert sum(batch.skipped.get("refused", 0) for batch in batches) == 1
    assert sorted(a for batch in batches for a in batch.references) == sorted(f"answer {i}" for i in range(20))
    assert f"skipped {file}:21: " in caplog.text
    assert "System role not supported" in caplog.text


def test_a_record_whose_turns_have_to_be_merged_is_used_and_counted(tmp_path, strict_aligner):
    merging = Aligner(strict_aligner.receiver, strict_aligner.sharers, chat=ChatConfig(turns="merge"))
    file = write_jsonl(tmp_path / "data.jsonl", [*pairs(20), SYSTEM])
    data = InstructionData(file, val_fraction=0, exact_answers=True, aligner=merging)
    batches = list(data.train_dataloader())
    assert sum(batch.skipped.get("merged", 0) for batch in batches) == 1
    assert sum(len(batch.references) for batch in batches) == 21
    assert data.left_out == {"too_long": 0, "refused": 0, "merged": 0}


def test_data_that_a_chat_template_refuses_altogether_stop_at_once(tmp_path, strict_aligner):
    data = InstructionData(write_jsonl(tmp_path / "data.jsonl", [SYSTEM] * 5), val_fraction=0, aligner=strict_aligner)
    with pytest.raises(ValueError, match=r"no example can be used.*System role not supported"):
        data.setup("fit")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_malformed_data_stop_a_stream_with_the_same_message_in_any_process(num_workers, tmp_path, aligner):
    file = write_jsonl(tmp_path / "data.jsonl", [*pairs(93), *[b"{"] * 7])
    data = InstructionData(file, streaming=True, buffer=8, num_workers=num_workers, aligner=aligner)
    with pytest.raises(ValueError) as error:
        list(data.train_dataloader())
    assert str(error.value).startswith(
        f"{file}: 7 of 100 records are malformed, more than 1%. The first:\n  {file}:94: "
    )
    assert str(error.value).count("not JSON") == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "no/such/file.jsonl"}, "data.path 'no/such/file.jsonl': no such file or folder"),
        ({"val_path": "./nowhere"}, "data.val_path './nowhere': no such file or folder"),
        (
            {"path": "notes.txt"},
            "data.path 'notes.txt': give one of .jsonl, .ndjson, .json, .csv, .tsv, .parquet, not .txt",
        ),
        ({"path": "empty"}, "data.path 'empty': the folder has none of .jsonl, "),
        ({"val_path": "data.jsonl"}, "data.val_path 'data.jsonl' and data.path 'data.jsonl' both have data.jsonl"),
        ({"batch_size": 0}, "data.batch_size is 0: it must be at least 1"),
        ({"val_batch_size": 0}, "data.val_batch_size is 0"),
        ({"buffer": 0}, "data.buffer is 0"),
        ({"num_workers": -1}, "data.num_workers is -1"),
        ({"val_fraction": 1.0}, r"data.val_fraction is 1.0: it must lie in \[0, 1\)"),
        ({"val_fraction": -0.1}, "data.val_fraction is -0.1"),
        ({"prompt_column": "task"}, "data.prompt_column is 'task' and data.response_column None: give both"),
        ({"response_column": "task"}, "data.prompt_column is None and data.response_column 'task': give both"),
        ({"max_length": 1}, "data.max_length is 1: it must be at least 2"),
    ],
)
def test_what_a_user_gets_wrong_is_refused_before_anything_is_read(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("Not data.")
    write_jsonl(tmp_path / "data.jsonl", pairs(3))
    with pytest.raises(ValueError, match=message):
        InstructionData(**{"path": "data.jsonl", **settings})


def test_the_file_that_is_trained_on_is_not_validated_on_whatever_its_name_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "data.jsonl", pairs(9))
    (tmp_path / "link.jsonl").symlink_to("data.jsonl")
    (tmp_path / "hard_link.jsonl").hardlink_to("data.jsonl")
    for val_path in ("./data.jsonl", str(tmp_path / "data.jsonl"), "link.jsonl", "hard_link.jsonl", ["link.jsonl"]):
        for path in ("data.jsonl", ["data.jsonl"], "."):
            with pytest.raises(ValueError, match=r"so validation would be on what was trained on: give another"):
                InstructionData(path, val_path=val_path)
    with pytest.raises(ValueError, match="both have nobody/no-data"):
        InstructionData("nobody/no-data", val_path="nobody/no-data")
    wish = InstructionData("data.jsonl", val_path="./data.jsonl", val_split="train[:3]")
    assert (len(wish.train_examples()), len(wish.val_examples())) == (9, 3)


def test_overfitting_goes_over_the_same_batches_in_every_epoch(tmp_path, aligner):
    class Answers(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.given = torch.nn.Parameter(torch.zeros(())), []

        def training_step(self, batch, batch_idx):
            self.given.append((batch.epoch, batch.references))
            return self.weight * 0.0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = InstructionData(
        write_jsonl(tmp_path / "data.jsonl", pairs(40)), batch_size=4, exact_answers=True, aligner=aligner
    )
    module = Answers()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    L.Trainer(accelerator="cpu", overfit_batches=2, max_epochs=3, **quiet).fit(module, datamodule=data)
    assert [epoch for epoch, _ in module.given] == [0, 0, 1, 1, 2, 2]
    batches = [references for _, references in module.given]
    assert batches[:2] == batches[2:4] == batches[4:]
    assert batches[0] != batches[1]


UNREADABLE = {
    "empty": b"",
    "binary": bytes(range(256)) * 9,
    "deep": b'{"prompt": ' + b"[" * 2000 + b"]" * 2000 + b', "response": "6"}',
    "latin-1": '{"prompt": "café?", "response": "ja"}'.encode("latin-1"),
    "numbers": b'{"prompt": 6, "response": 7}',
    "null": b'{"messages": [{"role": "user", "content": "Six?"}, {"role": "assistant", "content": null}]}',
    "surrogate": b'{"prompt": "\\ud800", "response": "6"}',
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_data_that_cannot_be_read_are_one_message_and_leave_nothing_behind(kind, tmp_path, monkeypatch):
    (tmp_path / "bad.jsonl").write_bytes(UNREADABLE[kind])
    error = refused(tmp_path, monkeypatch)
    assert "bad.jsonl' has no records" in error if kind == "empty" else "bad.jsonl:1: " in error


def test_data_of_which_nothing_can_be_used_leave_nothing_behind(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "bad.jsonl", pairs(9))
    error = refused(tmp_path, monkeypatch, "--data.init_args.max_length=2")
    assert "no example can be used, not even the shortest" in error
    assert "data.max_length is 2: raise it, or shorten" in error
    error = refused(tmp_path, monkeypatch, '--model.template_kwargs={"tokenize": true}')
    assert "model.template_kwargs has tokenize" in error


def test_one_example_that_can_be_used_is_enough_whatever_its_length(tmp_path, aligner):
    calls = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "tool_calls": [
            {"function": {"name": "add", "arguments": {"to": i}}}]}]}
        for i in range(80)
    ]  # fmt: skip
    path = write_jsonl(tmp_path / "calls.jsonl", calls)
    with pytest.raises(UserError, match="no example can be used"):
        InstructionData(path, aligner=aligner).setup("fit")
    path = write_jsonl(tmp_path / "calls.jsonl", [*calls, {"prompt": "Repeat: " + "so " * 100, "response": "so"}])
    InstructionData(path, val_fraction=0, aligner=aligner).setup("fit")


def refused(folder: Path, monkeypatch, *args: str) -> str:
    """What `fit` on `bad.jsonl` says when it refuses it, having made no folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["c2c_lightning"])
    before = {path.name for path in folder.iterdir()}
    data = ["--data=InstructionData", "--data.init_args.path=bad.jsonl"]
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", BASE, *data, "--trainer.logger=false", *args])
    assert {path.name for path in folder.iterdir()} - before <= {"datasets_cache"}
    return str(exit.value)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "data.path '.*data.jsonl' has no records"),
        (pairs(1), "data.path '.*data.jsonl' has one record, of which data.val_fraction 0.01 cannot be held out"),
        (
            [{"task": "Six?"}],
            "1 of 1 records are malformed.*\n.*data.jsonl:1: columns .* name them with data.prompt_column",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_are_one_clear_error(records, message, tmp_path):
    file = tmp_path / "data.jsonl"
    write_jsonl(file, records) if records else file.touch()
    with pytest.raises(ValueError, match=message):
        InstructionData(str(file)).train_dataloader()


def test_examples_and_batch_makers_travel_to_workers_that_are_not_forked(gsm8k, aligner):
    for streaming in (False, True):
        data = InstructionData(str(gsm8k / "train.jsonl"), streaming=streaming, aligner=aligner)
        stream = pickle.loads(pickle.dumps(data.train_dataloader().stream))
        assert next(iter(stream)).num_supervised > 0

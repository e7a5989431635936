"""Chat templates for models without one, turns that a template refuses, and the day on which prompts were written."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, processors

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.models import Aligner, ChatConfig, load_aligner
from c2c_lightning.models.chat import as_text, merged
from c2c_lightning.models.decoding import end_of_turn
from tests.models import tiny

ASKED = [{"role": "user", "content": "Where does Ribigo live?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "Ribigo lives in Oslo."}]
SYSTEM = [{"role": "system", "content": "You know every capital."}, *ASKED]
TWICE = [*ASKED, {"role": "user", "content": "In Oslo?"}]
STRICT = (  # as Gemma 2's: no system turn, and user and assistant in turn
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = "{{ strftime_now('Today is %d %b %Y.') }}\n" + tiny.CHATML


@pytest.fixture
def base(tmp_path) -> str:
    """A base model's folder: no chat template."""
    folder = tiny.save("qwen3", tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    return str(folder)


@pytest.fixture
def dated(tmp_path) -> str:
    folder = tiny.save("qwen3", tmp_path / "dated")
    (folder / "chat_template.jinja").write_text(DATED)
    return str(folder)


def test_a_base_model_reads_by_the_template_that_is_given(base, tmp_path):
    with pytest.raises(UserError, match=r"no chat template.*model\.chat\.receiver or in model\.chat\.sharers"):
        load_aligner(base, [base])
    file = tmp_path / "mine.jinja"
    file.write_text(STRICT)
    aligner = load_aligner(base, [base], chat=ChatConfig("plain", [str(file)]))
    prompt = aligner.prompt(ASKED)
    assert prompt.text == "Question: Where does Ribigo live?\n\nAnswer:"
    assert aligner.receiver.decode(prompt.receiver_ids) == prompt.text
    assert aligner.sharers[0].decode(prompt.sharer_ids[0]) == (
        "<|im_start|>user\nWhere does Ribigo live?<|im_end|>\n<|im_start|>assistant\n"
    )
    response = aligner.receiver.decode(aligner.response_ids(ANSWERED, prompt))
    assert response == " Ribigo lives in Oslo." + aligner.receiver.eos_token
    assert end_of_turn(aligner.receiver) == aligner.receiver.eos_token_id


def test_the_plain_template_begins_as_the_tokenizer_would_begin_a_text(base):
    config = Path(base, "tokenizer_config.json")
    said = json.loads(config.read_text())
    config.write_text(json.dumps(said | {"bos_token": "<|im_start|>"}))
    tokenizer = Tokenizer.from_file(str(Path(base, "tokenizer.json")))
    begin = ("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[begin])
    tokenizer.save(str(Path(base, "tokenizer.json")))
    begun = load_aligner(base, [base], chat=ChatConfig("plain", ["plain"])).prompt([*SYSTEM, ANSWERED[1], *ASKED])
    assert begun.text.startswith("<|im_start|>You know every capital.\n\nQuestion: Where")
    assert begun.text.count("<|im_start|>") == 1


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ({"receiver": "no-such.jinja"}, r"model\.chat\.receiver is 'no-such\.jinja': give plain, or a file"),
        ({"sharers": ["plain", "plain"]}, r"model\.chat\.sharers has 2 templates for 1 sharers"),
        ({"sharers": ["none"]}, r"model\.chat\.sharers\.0 is 'none'"),
        ({"receiver": "{{ messages[0].content | upper }}"}, "changes the text|leaves out"),
        ({"turns": "drop"}, r"model\.chat\.turns is 'drop': give refuse or merge"),
        ({"date": "tomorrow"}, r"model\.chat\.date is 'tomorrow': give a day as YYYY-MM-DD"),
    ],
)
def test_what_is_no_way_of_reading_a_conversation_is_told_of(base, chat, reason):
    with pytest.raises(UserError, match=reason):
        load_aligner(base, [base], chat=ChatConfig(**{"receiver": "plain", "sharers": ["plain"]} | chat))


def strict_sharer(turns: str) -> Aligner:
    return Aligner(tiny.tokenizer("chatml"), [tiny.with_template("chatml", STRICT)], chat=ChatConfig(turns=turns))


@pytest.mark.parametrize("messages", [SYSTEM, TWICE, [*SYSTEM, *TWICE]])
def test_turns_that_one_model_refuses_are_merged_for_all_or_refused(messages):
    with pytest.raises(UserError, match="roles must alternate"):
        strict_sharer("refuse").prompt(messages)
    aligner = strict_sharer("merge")
    prompt = aligner.prompt(messages)
    said = "\n\n".join(message["content"] for message in messages)
    assert prompt.merged == [{"role": "user", "content": said}]
    expected = strict_sharer("refuse").prompt(prompt.merged)
    assert prompt.receiver_ids == expected.receiver_ids
    assert prompt.sharer_ids == expected.sharer_ids
    answered = [*messages, ANSWERED[1]]
    assert aligner.response_ids(answered, prompt) == aligner.response_ids([*prompt.merged, ANSWERED[1]], expected)
    assert said in aligner.render(aligner.sharers[0], messages)


def test_what_every_model_takes_is_left_as_it_is():
    assert strict_sharer("merge").prompt(ASKED).merged is None
    both = Aligner(tiny.tokenizer("chatml"), [tiny.tokenizer("chatml")], chat=ChatConfig(turns="merge"))
    assert both.prompt(SYSTEM + TWICE).merged is None


def test_as_few_turns_are_merged_as_can_be():
    assert next(merged([*SYSTEM, *TWICE]))[0] == SYSTEM[0]
    assert list(merged(ANSWERED)) == []
    called = [{"role": "user", "content": "Call it.", "tools": [{"name": "it"}]}, *ASKED]
    assert next(merged(called)) == as_text(called)  # turns with tools are not joined


def prompted(aligner: Aligner) -> str:
    return aligner.prompt(ASKED).text.splitlines()[0]


def test_a_date_is_kept_with_the_fuser_so_that_tomorrows_prompts_are_the_same(dated, tmp_path):
    made = tiny.between(dated, [dated], load_aligner(dated, [dated], chat=ChatConfig(date="2025-02-07")))
    assert prompted(made.models.aligner) == "Today is 07 Feb 2025."
    made.save_pretrained(tmp_path / "fuser")
    loaded = Communicator.from_pretrained(tmp_path / "fuser")
    assert prompted(loaded.models.aligner) == "Today is 07 Feb 2025."
    assert loaded.config()["chat"]["date"] == "2025-02-07"


def test_without_one_it_is_the_day_on_which_the_models_are_first_read(dated, base):
    assert load_aligner(dated, [dated]).chat.date == date.today().isoformat()
    assert load_aligner(base, [base], chat=ChatConfig("plain", ["plain"])).chat.date is None  # nobody asks


def test_a_fuser_keeps_templates_as_text(base, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(STRICT)
    made = tiny.between(base, [base], load_aligner(base, [base], chat=ChatConfig("plain", [str(file)], "merge")))
    made.save_pretrained(tmp_path / "fuser")
    file.unlink()
    loaded = Communicator.from_pretrained(tmp_path / "fuser")
    assert asdict(loaded.models.aligner.chat) == asdict(made.models.aligner.chat)
    one, other = (each.models.aligner.prompt(SYSTEM) for each in (made, loaded))
    assert one.receiver_ids == other.receiver_ids
    assert one.sharer_ids == other.sharer_ids
    assert torch.equal(loaded.models.receiver.lm_head.weight, made.models.receiver.lm_head.weight)

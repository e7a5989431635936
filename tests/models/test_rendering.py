"""Chat templates are rendered as transformers renders them, and none holds anything up, whatever it is given."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.utils.data import DataLoader

from c2c_lightning.data.batch_maker import BatchMaker
from c2c_lightning.data.loader import BatchStream
from c2c_lightning.data.records import Example
from c2c_lightning.models import Aligner, ChatConfig
from c2c_lightning.models.decoding import end_of_turn
from c2c_lightning.models.rendering import TemplateRunsOn, _apart, rendered
from tests.models import tiny
from tests.models.test_tool_chats import LLAMA, QWEN

COUNTS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ON_WORDS = "{% for m in messages %}{% if 'forever' in m.content %}" + COUNTS + "{% endif %}{% endfor %}" + tiny.CHATML
ON_TOOLS = "{% if tools %}" + COUNTS + "{% endif %}" + tiny.CHATML
MULTIPLIES = ON_WORDS.replace(COUNTS, "{{ 7 ** (messages | length * 9 ** 9) }}")
FILLS = ON_WORDS.replace(COUNTS, "{{ m.content * 99999999 }}")
SHORT = [{"role": "user", "content": "Where does Ribigo live?"}]
ENDLESS = [{"role": "user", "content": "Does it go on forever?"}]


def aligner(template: str, turns: str = "refuse") -> Aligner:
    tokenizer = tiny.tokenizer.__wrapped__("chatml")  # one of its own, for it is changed
    tokenizer.chat_template, tokenizer.name_or_path = template, "them/theirs"
    return Aligner(tokenizer, [tiny.tokenizer("turns")], chat=ChatConfig(turns=turns))


@pytest.mark.parametrize(
    ("template", "messages", "says"),
    [
        (ON_TOOLS, [{**SHORT[0], "tools": [{"type": "function", "function": {"name": "f"}}]}], "does not end"),
        (FILLS, ENDLESS, "takes or prints gigabytes"),
        pytest.param(MULTIPLIES, ENDLESS, "does not end in 2 seconds", marks=pytest.mark.slow),
    ],
    ids=["tools", "memory", "one long multiplication"],
)
def test_a_template_that_does_not_end_for_some_conversations_is_told_of_in_one_message(template, messages, says):
    reads = aligner(template, turns="merge")
    said = rf"the chat template of 'them/theirs' {says} .*user's '{messages[0]['content'][:9]}"
    with pytest.raises(TemplateRunsOn, match=said):
        reads.render(reads.receiver, messages)
    assert "Ribigo" in reads.prompt(SHORT).text


def test_a_record_for_which_a_template_does_not_end_stops_with_its_place_in_any_process():
    reads = BatchMaker(aligner(ON_WORDS), max_length=999, exact_answers=False)
    answer = {"role": "assistant", "content": "Oslo."}
    examples = [Example([*asked, answer], f"my.jsonl:{i}") for i, asked in enumerate((SHORT, ENDLESS), 1)]
    stream = BatchStream(examples, reads, batch_size=1, seed=None, buffer=1)
    batches = iter(DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="fork"))
    next(batches)
    assert "my.jsonl:2: the chat template of 'them/theirs' does not end" in str(next(batches))
    assert "Ribigo" in reads.aligner.prompt(SHORT).text


def test_threads_do_not_get_each_others_texts():
    tokenizer = tiny.tokenizer("chatml")
    chats = [[{"role": "user", "content": f"number {i}"}] for i in range(100)]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda chat: rendered(tokenizer, chat), chats))
    assert texts == [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]


def test_after_a_rendering_that_was_interrupted_comes_the_text_that_is_asked_for(monkeypatch):
    reads = aligner(ON_WORDS)
    reads.render(reads.receiver, SHORT)
    first = _apart.process

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(first.stdout, "readline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reads.render(reads.receiver, [{"role": "user", "content": "Something else."}])
    assert first.wait() == -signal.SIGKILL
    assert "Ribigo" in reads.render(reads.receiver, SHORT)


@pytest.mark.parametrize("template", [*tiny.TOKENIZERS, QWEN, LLAMA], ids=[*tiny.TOKENIZERS, "Qwen's", "Llama's"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_texts_are_those_of_transformers(template, add_generation_prompt):
    tokenizer = tiny.tokenizer(template if template in tiny.TOKENIZERS else "chatml")
    if template not in tiny.TOKENIZERS:
        tokenizer.chat_template = template
    chats = [
        SHORT,
        [*SHORT, {"role": "assistant", "content": "In Ósló \ud83d.", "reasoning": "北", "tool_calls": None}],
    ]
    variables = {"add_generation_prompt": add_generation_prompt, "enable_thinking": False}
    for messages in chats:
        assert rendered(tokenizer, messages, **variables) == tokenizer.apply_chat_template(
            messages, tokenize=False, **variables
        )
    end_of_turn(tokenizer)

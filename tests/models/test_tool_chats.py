"""Chats with tools are read by each template as it has them, or as text where one of the templates has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2c_lightning.data.records import MalformedTally
from c2c_lightning.data.source import Source
from c2c_lightning.errors import UserError
from c2c_lightning.models import Aligner, ChatConfig
from c2c_lightning.models.alignment import UNALIGNED
from c2c_lightning.models.chat import as_text
from tests.models import tiny

# As Qwen's: tools in the system's turn, calls after the text, results as the user's.
QWEN = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- '<tools>' }}{% for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant' + ('\\n' + m.content if m.content else '') }}
        {%- for call in m.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
# As Llama 3's: a call is the whole turn, and tools stand before the user's words.
LLAMA = """\
{%- for m in messages %}
    {%- if m.tool_calls %}
        {%- if m.tool_calls | length != 1 %}{{- raise_exception('Only single tool-calls') }}{% endif %}
        {{- '[assistant] {"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}
        {{- (m.tool_calls[0].function.arguments | tojson) + '}</s>' }}
    {%- else %}
        {{- '[' + ('ipython' if m.role == 'tool' else m.role) + '] ' }}
        {%- if tools and m.role == 'user' and loop.index0 == (1 if messages[0].role == 'system' else 0) %}
            {%- for tool in tools %}{{- (tool | tojson) + '\\n' }}{% endfor %}
        {%- endif %}
        {{- (m.content | trim) + '</s>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant] ' }}{% endif %}"""
STRICT = """\
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{% endif %}
    {{- '<|im_start|>' + m.role + '\\n' + (m.content | trim) + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

CHATS = Path(__file__).parents[3] / "shared" / "data" / "chats"  # beside the checkout, where somebody has put it
Message = dict[str, Any]
TOOL = {
    "type": "function",
    "function": {
        "name": "capital",
        "description": "The capital of a country; 北京 of 中国, say.",
        "parameters": {"type": "object", "properties": {"of": {"type": "string", "description": "its name"}}},
    },
}


def call(of: str) -> Message:
    return {"type": "function", "function": {"name": "capital", "arguments": {"of": of, "years": [1, 2]}}}


CHAT = [
    {"role": "user", "content": "Which capital?", "tools": [TOOL]},
    {"role": "assistant", "content": "", "tool_calls": [call('Norway, the "land"')]},
    {"role": "tool", "content": "Oslo"},
    {"role": "assistant", "content": "It is Oslo."},
    {"role": "user", "content": "And of China?"},
    {"role": "assistant", "content": "", "tool_calls": [call("中国")]},
]
WITH_SYSTEM = [
    {"role": "system", "content": "Be brief.", "tools": [TOOL]},
    {"role": "user", "content": "Which?"},
    *CHAT[1:],
]


def aligner(receiver: str, sharer: str, turns: str = "refuse") -> Aligner:
    tokenizers = [tiny.with_template("chatml", receiver), tiny.with_template("inst", sharer)]
    return Aligner(tokenizers[0], tokenizers[1:], template_kwargs={}, chat=ChatConfig(turns=turns))


@pytest.mark.parametrize("messages", [CHAT, WITH_SYSTEM])
@pytest.mark.parametrize("templates", [(QWEN, LLAMA), (LLAMA, QWEN)])
def test_every_template_has_tools_calls_and_results_in_its_own_form(templates, messages):
    both = aligner(*templates)
    prompt = both.prompt(messages[:-1])
    for tokenizer, text in (
        (both.receiver, prompt.text),
        (both.sharers[0], both.render(both.sharers[0], messages[:-1])),
    ):
        turns = [{k: v for k, v in m.items() if k != "tools"} for m in messages[:-1]]
        native = tokenizer.apply_chat_template(turns, tools=[TOOL], tokenize=False, add_generation_prompt=True)
        assert text == native
        assert all(said in text for said in ("capital", json.dumps('Norway, the "land"'), "Oslo", "of a country"))
    assert prompt.merged is None


@pytest.mark.parametrize("said", ["the capital", 'the \\"land\\"', "of a country", "Oslo", "its name"])
def test_opposite_a_token_of_a_tool_or_a_call_the_sharer_has_read_no_more_of_it(said):
    both = aligner(QWEN, LLAMA)
    messages = json.loads(json.dumps(CHAT).replace('"capital"', '"the capital"'))
    prompt = both.prompt(messages[:-1])
    sharer_text = both.render(both.sharers[0], messages[:-1])
    read = both.receiver(prompt.text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    read_opposite = both.sharers[0](sharer_text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    start, start_opposite = prompt.text.index(said), sharer_text.index(said)
    within = [i for i, (_, end) in enumerate(read) if start < end <= start + len(said)]
    assert len(within) > 1
    for i in within:
        opposite = prompt.positions[0][i]
        assert opposite != UNALIGNED
        behind = (read[i][1] - start) - (read_opposite[opposite][1] - start_opposite)
        assert 0 <= behind <= 6  # a token of the sharer's


def test_a_call_is_learned_with_its_end_of_turn():
    for template, begin, end in ((QWEN, "<tool_call>\n", "\n</tool_call><|im_end|>"), (LLAMA, "", "</s>")):
        tokenizer = tiny.with_template("chatml", template)
        alone = Aligner(tokenizer, [], template_kwargs={})
        prompt = alone.prompt(CHAT[:-1])
        response = tokenizer.decode(alone.response_ids(CHAT, prompt))
        key = "arguments" if template == QWEN else "parameters"
        expected = f'{begin}{{"name": "capital", "{key}": {{"of": "中国", "years": [1, 2]}}}}{end}'
        assert response.removesuffix("<|im_end|>") == expected.removesuffix("<|im_end|>")
        assert response.endswith("<|im_end|>")


@pytest.mark.parametrize("without", [tiny.CHATML, STRICT])
@pytest.mark.parametrize("sharer", [True, False])
def test_where_a_template_has_no_tools_they_are_refused_or_written_into_the_texts_for_all(without, sharer):
    templates = (QWEN, without) if sharer else (without, QWEN)
    with pytest.raises(
        UserError, match=r"leaves out tools or calls, which model\.chat\.turns merge|roles must alternate"
    ):
        aligner(*templates).prompt(CHAT[:-1])
    both = aligner(*templates, turns="merge")
    prompt = both.prompt(CHAT[:-1])
    assert prompt.merged is not None
    response = both.receiver.decode(both.response_ids(CHAT, prompt))
    texts = [prompt.text + response, both.render(both.sharers[0], prompt.merged)]
    assert texts[0].count('"arguments": {"of": "中国", "years": [1, 2]}}\n</tool_call>') == 1
    for text in texts:
        assert text.count('"name": "capital", "description"') == 1
        assert text.count('<tool_call>\n{"name": "capital", "arguments": {"of": "Norway') == 1
        assert text.count("<tool_response>\nOslo\n</tool_response>") == 1
    assert np.all(prompt.positions[0] < len(prompt.sharer_ids[0]))


def test_a_call_that_a_template_leaves_out_of_the_response_is_refused_or_written_into_it():
    asked = [{"role": "user", "content": "Which capital?"}]
    messages = [*asked, CHAT[-1]]
    both = aligner(tiny.CHATML, QWEN)
    with pytest.raises(UserError, match="leaves out the assistant's calls"):
        both.response_ids(messages, both.prompt(asked))
    both = aligner(tiny.CHATML, QWEN, turns="merge")
    prompt = both.prompt(asked)
    assert prompt.merged is None
    response = both.receiver.decode(both.response_ids(messages, prompt))
    assert response == as_text(messages)[-1]["content"] + "<|im_end|>"
    assert prompt.merged == asked


def test_several_calls_are_written_as_text_where_a_template_takes_one():
    twice = [*CHAT[:1], {**CHAT[1], "tool_calls": [call("Norway"), call("中国")]}, *CHAT[2:]]
    with pytest.raises(UserError, match="Only single tool-calls"):
        aligner(QWEN, LLAMA).prompt(twice[:-1])
    assert aligner(QWEN, LLAMA, turns="merge").prompt(twice[:-1]).text.count("<tool_call>\n{") == 3


@pytest.mark.skipif(not CHATS.exists(), reason="the real text is not beside the checkout")
@pytest.mark.parametrize(
    ("file", "split", "turns", "counts"),
    [
        ("glaive_toolcall_en_demo.json", "train[:60]", "refuse", (60, 0, 0)),
        ("reason_tool_use_demo_50.jsonl", "train", "refuse", (47, 0, 3)),
        ("reason_tool_use_demo_50.jsonl", "train", "merge", (47, 3, 0)),
    ],
)
def test_tool_chats_of_the_real_text_are_read_by_both_templates(file, split, turns, counts):
    both = aligner(QWEN, LLAMA, turns)
    native = merged = refused = 0
    for example in Source(str(CHATS / file), split).examples(MalformedTally(file)):
        try:
            prompt = both.prompt(example.prompt)
            both.response_ids(example.messages, prompt)
        except UserError:
            refused += 1
        else:
            native, merged = native + (prompt.merged is None), merged + (prompt.merged is not None)
    assert (native, merged, refused) == counts

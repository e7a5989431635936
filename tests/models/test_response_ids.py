"""What the receiver learns to say: the response's own tokens, up to the end of its turn."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from c2c_lightning.models.alignment import Aligner
from tests.models import tiny

ANSWERS = ["Norway", "It is in Norway.\nOf course!", "北京 👍🏽", "Oslo  and  more", "user", "im_end", ">", "s"]


def dialogue(answer: str) -> list[dict]:
    return [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Which country is Oslo in?"},
        {"role": "assistant", "content": answer},
    ]


def respond(tokenizer, answer: str) -> tuple[list[int], list[int]]:
    aligner, messages = Aligner(tokenizer, []), dialogue(answer)
    prompt = aligner.prompt(messages[:-1])
    return prompt.receiver_ids, aligner.response_ids(messages, prompt)


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", ["chatml", "inst", "bare"])
def test_prompt_and_response_are_the_finished_conversation_up_to_its_end_of_turn(name, answer):
    tokenizer = tiny.tokenizer(name)
    prompt_ids, response = respond(tokenizer, answer)
    assert response[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in response[:-1]
    finished = tokenizer.apply_chat_template(dialogue(answer), tokenize=False)
    said = tokenizer.decode(tokenizer(finished, add_special_tokens=False).input_ids)
    assert said.startswith(tokenizer.decode(prompt_ids + response))
    assert tokenizer.decode(response, skip_special_tokens=True).strip() == answer


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_response_that_would_merge_with_the_prompt_leaves_the_prompts_tokens_alone(answer):
    # After "assistant message: " the prompt's last token is a space, which belongs to the next word.
    tokenizer = tiny.tokenizer("turns")
    prompt_ids, response = respond(tokenizer, answer)
    finished = tokenizer.apply_chat_template(dialogue(answer), tokenize=False)
    together = tokenizer(finished, add_special_tokens=False).input_ids
    prompt = Aligner(tokenizer, []).prompt(dialogue(answer)[:-1])
    assert prompt_ids == prompt.receiver_ids
    if together[: len(prompt_ids)] == prompt_ids:
        assert together[len(prompt_ids) :][: len(response)] == response
    expected = tokenizer.decode(tokenizer(answer, add_special_tokens=False).input_ids, skip_special_tokens=True)
    assert tokenizer.decode(response, skip_special_tokens=True).strip() == expected.strip()
    assert response[-1] == tokenizer.eos_token_id


def test_there_is_a_prompt_with_which_a_response_merges():
    tokenizer = tiny.with_template(
        "inst",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    )
    answer = "the user asks"
    prompt_ids, response = respond(tokenizer, answer)
    finished = tokenizer.apply_chat_template(dialogue(answer), tokenize=False)
    assert tokenizer(finished, add_special_tokens=False).input_ids[: len(prompt_ids)] != prompt_ids
    assert tokenizer.decode(response, skip_special_tokens=True).strip() == answer
    assert response[-1] == tokenizer.eos_token_id


# As reasoning models have it: the prompt opens an empty think block, which a finished turn lacks.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)


@pytest.mark.parametrize("answer", [*ANSWERS, "end", "|", "\n", " white space "])
def test_a_finished_conversation_that_does_not_begin_with_its_prompt_gives_the_response_alone(answer):
    tokenizer = tiny.with_template("chatml", THINKING)
    _, response = respond(tokenizer, answer)
    assert tokenizer.decode(response) == answer.strip() + "<|im_end|>"


# As Qwen3's template has it: thoughts are kept in the last turn alone, set on lines of their own, and a prompt that
# asks for none has an empty block.
QWEN3 = """\
{%- set ns = namespace(query=0) %}
{%- for m in messages if m.role == 'user' %}{% set ns.query = messages.index(m) %}{% endfor %}
{%- for m in messages %}
    {%- set text, thoughts = m.content, '' %}
    {%- if m.role == 'assistant' and '</think>' in text %}
        {%- set thoughts = text.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if m.role == 'assistant' and loop.index0 > ns.query %}
        {%- set text = '<think>\\n' + thoughts + '\\n</think>\\n\\n' + text %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
# As DeepSeek-R1's: the prompt opens a think block, and a finished turn has lost it.
R1 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
THOUGHT = "<think>\nOslo?\n</think>\n\nNorway"


def respond_with(template: str, messages: list[dict], **template_kwargs) -> tuple[str, str]:
    """Prompt and response as text."""
    tokenizer = tiny.with_template("chatml", template)
    aligner = Aligner(tokenizer, [tiny.tokenizer("inst")], template_kwargs=template_kwargs)
    prompt = aligner.prompt(messages[:-1])
    return prompt.text, tokenizer.decode(aligner.response_ids(messages, prompt))


@pytest.mark.parametrize(
    ("template", "thinking", "answer", "response"),
    [
        (QWEN3, True, THOUGHT, THOUGHT),
        (QWEN3, True, "<think>Oslo?</think>Norway", THOUGHT),
        (QWEN3, True, "Norway", "<think>\n\n</think>\n\nNorway"),
        (QWEN3, False, "Norway", "Norway"),
        (QWEN3, False, "<think>\n\n</think>\n\nNorway", "Norway"),
        (THINKING, False, "<think></think>Norway", "Norway"),
        (R1, True, THOUGHT, "Oslo?\n</think>\n\nNorway"),
        (R1, True, "Norway", "Norway"),
    ],
)
def test_prompt_and_response_have_one_think_block_together(template, thinking, answer, response):
    prompt, learned = respond_with(template, dialogue(answer), enable_thinking=thinking)
    assert learned == response + "<|im_end|>"
    assert (prompt + learned).count("<think>") <= 1


@pytest.mark.parametrize("template", [QWEN3, THINKING])
@pytest.mark.parametrize("answer", [THOUGHT, "<think>Oslo?</think>Norway"])
def test_thoughts_after_a_prompt_without_thinking_are_refused_with_the_remedy(template, answer):
    with pytest.raises(ValueError, match=r"begins with a <think> block.*give model\.template_kwargs \{enable_thinking"):
        respond_with(template, dialogue(answer), enable_thinking=False)


@pytest.mark.parametrize("thinking", [True, False])
def test_thoughts_that_a_template_leaves_out_of_past_turns_do_not_stand_in_the_way(thinking):
    messages = [*dialogue(THOUGHT), {"role": "user", "content": "And Rome?"}, {"role": "assistant", "content": "Italy"}]
    prompt, learned = respond_with(QWEN3, messages, enable_thinking=thinking)
    assert "Norway" in prompt
    assert "Oslo?\n</think>" not in prompt
    assert learned.endswith("Italy<|im_end|>")


def test_what_comes_after_thoughts_that_were_left_out_is_aligned_with_the_same_words():
    tokenizer = tiny.with_template("chatml", QWEN3)
    keeping = tiny.tokenizer("chatml")
    messages = [
        *dialogue("<think>\nNorway, or Sweden?\n</think>\n\nNorway, of course"),
        {"role": "user", "content": "Why?"},
    ]
    for receiver, sharer in ((tokenizer, keeping), (keeping, tokenizer)):
        prompt = Aligner(receiver, [sharer], template_kwargs={}).prompt(messages)
        word = receiver.encode(" course", add_special_tokens=False)[-1]
        (at,) = [i for i, token in enumerate(prompt.receiver_ids) if token == word]
        read = sharer.decode(prompt.sharer_ids[0][: prompt.positions[0][at] + 1])
        assert read.endswith("Norway, of course")


# As Llama 3's: headers of special tokens, contents stripped, and an end of turn that the text may name.
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.fixture(scope="module")
def llama3() -> PreTrainedTokenizerFast:
    special = [
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|pad|>",
    ]
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny.byte_level(400, [*special, "<|end_of_text|>"]),
        eos_token="<|end_of_text|>",
        pad_token="<|pad|>",
        additional_special_tokens=special[:5],
        chat_template=LLAMA3,
    )


@pytest.mark.parametrize(
    "answer", ['<|python_tag|>add(1, "2")', "The <|python_tag|> token", "<|start_header_id|>", "Norway"]
)
def test_a_special_token_in_a_response_does_not_cut_it(answer, llama3):
    _, response = respond(llama3, answer)
    assert llama3.decode(response) == answer + "<|eot_id|>"


@pytest.mark.parametrize("end", ["<|eot_id|>", "<|end_of_text|>"])
def test_a_response_whose_text_ends_the_turn_too_early_is_refused(end, llama3):
    for answer in (f"The token {end} ends it", end, f"Norway{end}"):
        with pytest.raises(
            ValueError, match=r"the assistant's message has '<\|e.*\|>' in its text, a token that ends a turn"
        ):
            respond(llama3, answer)


def test_a_template_without_an_end_of_turn_gets_the_tokenizers():
    tokenizer = tiny.with_template("chatml", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    _, response = respond(tokenizer, "Norway")
    assert response[-1] == tokenizer.eos_token_id


def test_an_empty_response_is_the_end_of_turn():
    for name in ("chatml", "inst", "turns", "bare"):
        tokenizer = tiny.tokenizer(name)
        _, response = respond(tokenizer, "")
        assert response[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(response, skip_special_tokens=True).strip() == ""


def test_a_template_that_leaves_out_the_answer_is_refused_by_name():
    template = "{% for m in messages if m.role != 'assistant' %}{{ m.content }}\n{% endfor %}"
    with pytest.raises(ValueError, match="'strange-model' changes the assistant's message"):
        respond(tiny.with_template("chatml", template), "Norway")


@pytest.mark.parametrize("change", ["{{ m.content | upper }}", "nothing"])
def test_a_template_that_changes_the_answer_is_refused_by_name(change):
    template = THINKING.replace("{{ m.content | trim }}", "{% if m.role == 'assistant' %}" + change + "{% endif %}")
    aligner = Aligner(tiny.with_template("chatml", THINKING), [])
    prompt = aligner.prompt(dialogue("Norway")[:-1])
    aligner.receiver = tiny.with_template("chatml", template)
    with pytest.raises(ValueError, match="'strange-model' changes the assistant's message"):
        aligner.response_ids(dialogue("Norway"), prompt)

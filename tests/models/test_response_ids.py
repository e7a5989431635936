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


def with_template(name: str, template: str) -> PreTrainedTokenizerFast:
    plain = tiny.tokenizer(name)
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer, eos_token=plain.eos_token, pad_token=plain.pad_token
    )
    made.chat_template, made.name_or_path = template, "strange-model"
    return made


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
    tokenizer = with_template(
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
    tokenizer = with_template("chatml", THINKING)
    _, response = respond(tokenizer, answer)
    assert tokenizer.decode(response) == answer.strip() + "<|im_end|>"


def test_a_response_with_its_own_think_block_is_taken_as_it_stands():
    # As Qwen3's template has it: a finished turn gets an empty think block unless it brings its own.
    own = "{% if m.role == 'assistant' and '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}"
    template = THINKING.replace("{{ m.content | trim }}", own + "{{ m.content }}")
    for answer in ("<think>\nOslo?\n</think>\n\nNorway", "Norway"):
        _, response = respond(with_template("chatml", template), answer)
        assert tiny.tokenizer("chatml").decode(response) == answer + "<|im_end|>"


def test_a_template_without_an_end_of_turn_gets_the_tokenizers():
    tokenizer = with_template("chatml", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    _, response = respond(tokenizer, "Norway")
    assert response[-1] == tokenizer.eos_token_id


def test_an_empty_response_is_the_end_of_turn():
    for name in ("chatml", "inst", "turns", "bare"):
        tokenizer = tiny.tokenizer(name)
        _, response = respond(tokenizer, "")
        assert response[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(response, skip_special_tokens=True).strip() == ""


@pytest.mark.parametrize("change", ["{{ m.content | upper }}", "nothing"])
def test_a_template_that_changes_the_answer_is_refused_by_name(change):
    template = THINKING.replace("{{ m.content | trim }}", "{% if m.role == 'assistant' %}" + change + "{% endif %}")
    aligner = Aligner(with_template("chatml", THINKING), [])
    prompt = aligner.prompt(dialogue("Norway")[:-1])
    aligner.receiver = with_template("chatml", template)
    with pytest.raises(ValueError, match="'strange-model' changes the assistant's message"):
        aligner.response_ids(dialogue("Norway"), prompt)

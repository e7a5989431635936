"""`published` alignment: the sharer reads the receiver's tokens, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from c2c_lightning.models import load_aligner
from c2c_lightning.models.alignment import Aligner
from tests.models import tiny

PAIRS = [("chatml", "turns"), ("inst", "chatml"), ("turns", "bare"), ("bare", "inst")]
CONTENTS = ["Which country is the capital Oslo in?", "北京是中国的首都。", "a 👨‍👩‍👧 दिल्ली", "def f(x):\n    return x"]


def messages_of(content: str) -> list[dict]:
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "Norway"},
        {"role": "user", "content": "user"},
    ]


def one_token_for(text: str, tokenizer) -> int:
    """Of the tokens of `text`, the first of those that decode to most characters."""
    best, longest = tokenizer.pad_token_id, -1
    for token in tokenizer.encode(text, add_special_tokens=False):
        if len(tokenizer.decode([token])) > longest:
            best, longest = token, len(tokenizer.decode([token]))
    return best


def content_places(name: str, messages: list[dict]) -> list[int | None]:
    """For every token of the rendered prompt the message in whose content it ends, if any."""
    tokenizer = tiny.tokenizer(name)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    spans, at = [], 0
    for message in messages:
        header = {"chatml": f"<|im_start|>{message['role']}\n", "turns": f"{message['role']} message: "}.get(name, "")
        start = text.index(header + message["content"], at) + len(header)
        at = start + len(message["content"])
        spans.append((start, at))
    ends = [end for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping]
    return [next((i for i, (a, b) in enumerate(spans) if a < end <= b), None) for end in ends]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(("receiver", "sharer"), PAIRS)
def test_each_content_token_of_the_receiver_has_one_token_of_the_sharers_the_one_that_covers_most(
    receiver, sharer, content
):
    mine, theirs = tiny.tokenizer(receiver), tiny.tokenizer(sharer)
    messages = messages_of(content)
    prompt = Aligner(mine, [theirs], alignment="published").prompt(messages)
    places = content_places(receiver, messages)
    opposite = []
    for n, (token, place) in enumerate(zip(prompt.receiver_ids, places)):
        if place is not None:
            position = prompt.positions[0][n]
            assert prompt.sharer_ids[0][position] == one_token_for(mine.decode([token]), theirs)
            opposite.append(position)
    assert len(set(opposite)) == len(opposite)
    num_content = sum(place is not None for place in places)
    num_template = sum(place is None for place in content_places(sharer, messages))
    assert len(prompt.sharer_ids[0]) == num_content + num_template
    assert (np.diff(prompt.positions[0]) >= 0).all()


def test_the_same_tokenizer_and_template_give_the_identity():
    tokenizer = tiny.tokenizer("chatml")
    messages = messages_of("Which country is Oslo in?")
    prompt = Aligner(tokenizer, [tokenizer], alignment="published").prompt(messages)
    assert prompt.sharer_ids[0] == prompt.receiver_ids
    assert prompt.positions[0].tolist() == list(range(len(prompt.receiver_ids) - 1))


def test_the_template_around_the_contents_is_the_sharers_own():
    sharer = tiny.tokenizer("chatml")
    prompt = Aligner(tiny.tokenizer("turns"), [sharer], alignment="published").prompt(messages_of("Oslo"))
    text = sharer.decode(prompt.sharer_ids[0])
    assert text.startswith("<|im_start|>user\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert text.count("<|im_end|>") == 3


def test_the_built_in_pair_is_aligned_from_its_folders():
    names = "c2c_lightning/nano/receiver", ["c2c_lightning/nano/sharer"]
    messages = [{"role": "user", "content": "In which country does Ribigo live?"}]
    for alignment in ("spans", "published"):
        aligner = load_aligner(*names, alignment)
        prompt = aligner.prompt(messages)
        assert len(prompt.positions[0]) == len(prompt.receiver_ids) - 1
        assert len(aligner.pad_ids) == 2

"""Span alignment: what each model reads, and which sharer token stands opposite each receiver token."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from c2c_lightning.models.alignment import UNALIGNED, Aligner
from tests.models import tiny


def user(content: str) -> list[dict]:
    return [{"role": "user", "content": content}]


CONVERSATIONS = {
    "english": user("Which country is the capital Oslo in?"),
    "chinese": user("北京是中国的首都，人口很多。Beijing!"),
    "hindi": user("दिल्ली भारत की राजधानी है।"),
    "emoji": user("a 👨‍👩‍👧 b 👍🏽😀 ﬁne café"),
    "code": user("def f(x):\n    return x  # user\n\n\tassert f(1) == 1"),
    "template words": [{"role": "user", "content": "user"}, {"role": "assistant", "content": "message: user"}, *user("\n user")],
    "turns": [{"role": "system", "content": "Be kind."}, *user("Oslo?"), {"role": "assistant", "content": "Norway 😀"}, *user("北京?")],
    "white space": [{"role": "system", "content": ""}, *user("  two spaces before, a line after \n")],
    "blank": [{"role": "system", "content": " "}, *user("user"), {"role": "assistant", "content": ""}, *user("Oslo")],
}  # fmt: skip
NAMES = list(tiny.TOKENIZERS)
TWO = list(itertools.permutations(NAMES, 2))


def aligner(receiver: str, *sharers: str) -> Aligner:
    return Aligner(tiny.tokenizer(receiver), [tiny.tokenizer(s) for s in sharers])


def rendered(name: str, messages: list[dict]) -> str:
    return tiny.tokenizer(name).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def content_ends(name: str, messages: list[dict]) -> list[tuple[int, int] | None]:
    """For every token: (message, characters of it read by the token's end), None for the template's.

    Found the simple way: each content is a plain part of the text, after the one before it.
    """
    text, spans, at = rendered(name, messages), [], 0
    for message in messages:
        content = message["content"] if name != "inst" else message["content"].strip()
        content = content if content.strip() else ""
        header = {"chatml": f"<|im_start|>{message['role']}\n", "turns": f"{message['role']} message: "}.get(name, "")
        at = text.index(header + content, at) + len(header)
        spans.append((at, at + len(content), message["content"].index(content)))
        at += len(content)
    encoded = tiny.tokenizer(name)(text, add_special_tokens=False, return_offsets_mapping=True)
    places = []
    for _, end in encoded.offset_mapping:
        inside = [(i, end - start + lead) for i, (start, stop, lead) in enumerate(spans) if start < end <= stop]
        places.append(inside[0] if inside else None)
    return places


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_model_reads_its_own_template_in_its_own_tokens(name, messages):
    receiver = NAMES[NAMES.index(name) - 1]
    prompt = aligner(receiver, name).prompt(messages)
    assert prompt.sharer_ids[0] == tiny.tokenizer(name)(rendered(name, messages), add_special_tokens=False).input_ids
    assert prompt.text == rendered(receiver, messages)
    assert prompt.receiver_ids == tiny.tokenizer(receiver)(prompt.text, add_special_tokens=False).input_ids
    assert len(prompt.positions[0]) == len(prompt.receiver_ids) - 1


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize(("receiver", "sharer"), TWO)
def test_opposite_a_content_token_stands_the_newest_token_that_has_read_no_further(receiver, sharer, messages):
    positions = aligner(receiver, sharer).prompt(messages).positions[0]
    mine, theirs = content_ends(receiver, messages), content_ends(sharer, messages)
    checked = 0
    for n, (opposite, place) in enumerate(zip(positions, mine)):
        if place is None:
            continue
        message, end = place
        newest = [p for p, t in enumerate(theirs) if t is not None and t[0] == message and t[1] <= end]
        if newest:
            # Tokens that share a character have read it only when the last of them has.
            whole = n + 1 == len(mine) or mine[n + 1] != place
            assert opposite == newest[-1] if whole else opposite <= newest[-1]
            checked += 1
        if opposite != UNALIGNED and theirs[opposite] is not None:
            assert theirs[opposite][0] < message or theirs[opposite] <= place
    assert checked > 0


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize(("receiver", "sharer"), TWO)
def test_positions_never_go_back(receiver, sharer, messages):
    prompt = aligner(receiver, sharer).prompt(messages)
    assert (np.diff(prompt.positions[0]) >= 0).all()
    assert prompt.positions[0].min() >= UNALIGNED
    assert prompt.positions[0].max() < len(prompt.sharer_ids[0])


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_tokenizer_and_template_give_the_identity(name, messages):
    prompt = aligner(name, name).prompt(messages)
    assert prompt.sharer_ids[0] == prompt.receiver_ids
    assert prompt.positions[0].tolist() == list(range(len(prompt.receiver_ids) - 1))


def test_template_sections_are_matched_token_by_token_and_their_rest_with_the_last():
    messages = user("Oslo")
    prompt = aligner("turns", "chatml").prompt(messages)
    mine, theirs = content_ends("turns", messages), content_ends("chatml", messages)
    for first in (True, False):  # the section before the content, and the one after it

        def section(places, first=first):
            content = [i for i, place in enumerate(places) if place]
            return range(content[0]) if first else range(content[-1] + 1, len(places))

        theirs_here = list(section(theirs))
        for j, n in enumerate(section(mine)):
            if n < len(prompt.positions[0]):
                assert prompt.positions[0][n] == theirs_here[min(j, len(theirs_here) - 1)]


def test_a_token_with_no_sharer_token_before_it_is_unaligned():
    prompt = aligner("chatml", "bare").prompt(user("Oslo"))
    header = len(tiny.tokenizer("chatml")("<|im_start|>user\n", add_special_tokens=False).input_ids)
    assert (prompt.positions[0][:header] == UNALIGNED).all()
    assert (prompt.positions[0][header:] >= 0).all()


def test_the_message_is_found_where_the_template_puts_it_though_its_words_stand_before():
    prompt = aligner("chatml", "turns").prompt(user("user message"))
    tokens = tiny.tokenizer("turns").convert_ids_to_tokens(prompt.sharer_ids[0])
    text = "".join(tokens).replace("▁", " ")
    last_of_content = len("".join(tokens[: prompt.positions[0][content_last("chatml", "user message")] + 1]))
    assert text[:last_of_content] == " user message: user message"


def content_last(name: str, content: str) -> int:
    return max(i for i, place in enumerate(content_ends(name, user(content))) if place)


def test_several_sharers_are_each_aligned_on_their_own():
    messages = CONVERSATIONS["turns"]
    both = aligner("chatml", "inst", "turns").prompt(messages)
    for i, name in enumerate(("inst", "turns")):
        alone = aligner("chatml", name).prompt(messages)
        assert both.sharer_ids[i] == alone.sharer_ids[0]
        assert (both.positions[i] == alone.positions[0]).all()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content | upper }}", "'strange-model' changes the text of the user's message"),
        ("Answer me.", "'strange-model' leaves out, repeats or moves a message"),
        ("{{ messages[0].content[:3] }}...", "'strange-model' changes the text of the user's message"),
        ("{{ messages[0].content * 2 }}", "'strange-model' leaves out, repeats or moves a message"),
        ("{{ raise_exception('no user here') }}", r"'strange-model' refuses \['user'\]: no user here"),
    ],
)
def test_a_template_that_does_not_render_the_message_as_it_is_is_refused_by_name(template, message):
    with pytest.raises(ValueError, match=message):
        Aligner(tiny.tokenizer("chatml"), [tiny.with_template("chatml", template)]).prompt(user("Oslo"))


def test_an_unknown_alignment_is_refused_by_value():
    with pytest.raises(ValueError, match=r"model\.alignment is 'span': give spans or published"):
        Aligner(tiny.tokenizer("chatml"), [], alignment="span")


def test_template_kwargs_reach_every_template():
    template = "{% if enable_thinking is defined and not enable_thinking %}quiet {% endif %}{{ messages[0].content }}"
    tokenizer = tiny.with_template("chatml", template)
    assert Aligner(tokenizer, []).prompt(user("Oslo")).text == "quiet Oslo"
    assert Aligner(tokenizer, [], template_kwargs={}).prompt(user("Oslo")).text == "Oslo"


@pytest.mark.parametrize(
    "key", ["tokenize", "return_dict", "return_tensors", "add_generation_prompt", "messages", "padding"]
)
def test_what_is_not_the_templates_to_decide_is_refused_by_name(key):
    with pytest.raises(ValueError, match=rf"model\.template_kwargs has {key}, which is not the chat template's"):
        Aligner(tiny.tokenizer("chatml"), [], template_kwargs={key: True})

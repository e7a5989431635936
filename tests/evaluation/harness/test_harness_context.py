"""The harness's texts as conversations, and responses to them as the receiver's ids."""

from __future__ import annotations

from c2c_lightning.evaluation.asking.decoding import beginnings
from c2c_lightning.evaluation.harness.model import conversation, to_context
from c2c_lightning.models import load_aligner
from tests.evaluation.harness.some_requests import PAIR, user


def test_conversations_pass_through_the_harness_whole():
    messages = [
        {"role": "system", "content": "Say it in one word."},
        {"role": "user", "content": 'Who said "我"? \n'},
        {"role": "assistant", "content": "{}"},
        {"role": "user", "content": "And now?"},
    ]
    assert conversation(to_context(messages)) == (messages, "")
    assert conversation(to_context([*messages, {"role": "assistant", "content": "It"}])) == (messages, "It")
    assert conversation("[1, 2]") == (user("[1, 2]"), "")


def test_what_a_template_puts_before_a_response_is_kept():
    aligner = load_aligner(*PAIR)
    aligner.receiver.chat_template = (  # as Llama 2's: a space before the response, and one after it
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}"
    )
    prompt = aligner.prompt(user("Where?"))
    said, _ = beginnings(aligner, aligner.receiver, user("Where?"))("", " Norway")
    assert aligner.receiver.decode(prompt.receiver_ids + said) == "[INST] Where? [/INST] Norway"
    whole = aligner.response_ids([*user("Where?"), {"role": "assistant", "content": "Norway"}], prompt)
    assert said == whole[: len(said)]
    assert len(whole) > len(said)  # the space after it, and the end of turn

"""The harness's texts as conversations, and responses to them as the receiver's ids."""

from __future__ import annotations

from c2c_lightning.evaluation.harness.context import ReadPrompt, conversation, to_context
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
    read = ReadPrompt.read("Where?", aligner)
    given, added = read.continued(" Norway")
    assert aligner.receiver.decode(read.prompt.receiver_ids + given + added) == "[INST] Where? [/INST] Norway"
    whole = aligner.response_ids(
        [*user("Where?"), {"role": "assistant", "content": "Norway"}], aligner.prompt(user("Where?"))
    )
    assert given + added == whole[: len(given + added)]
    assert len(whole) > len(given + added)  # the space after it, and the end of turn

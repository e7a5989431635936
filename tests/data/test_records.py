"""What counts as a conversation, and which of its turns are learned."""

from __future__ import annotations

import pytest

from c2c_lightning.data.records import MalformedRecord, MalformedTally, to_examples, to_messages

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
]


def supervised(messages: list[dict[str, str]], supervise: str) -> list[tuple[int, str]]:
    return [(len(e.prompt), e.response) for e in to_examples(messages, "here", supervise)]


def test_the_last_assistant_turn_is_learned_after_all_that_went_before():
    assert supervised(CHAT, "last") == [(4, "2")]


def test_every_assistant_turn_is_learned_after_all_that_went_before():
    assert supervised(CHAT, "every") == [(2, "1"), (4, "2")]


def test_a_chat_that_ends_with_the_user_is_used_up_to_its_last_assistant_turn():
    assert supervised(CHAT[:4], "last") == [(2, "1")]
    assert supervised(CHAT[:4], "every") == [(2, "1")]


def test_named_columns_win_over_recognised_ones():
    record = {"prompt": "no", "response": "no", "task": "Six?", "solution": "6"}
    assert [m["content"] for m in to_messages(record, ("task", "solution"))] == ["Six?", "6"]


@pytest.mark.parametrize("key", ["prompt", "question", "input"])
def test_usual_column_pairs_are_recognised(key):
    response = {"prompt": "completion", "question": "answer", "input": "output"}[key]
    assert [m["content"] for m in to_messages({key: "Six?", response: "6"})] == ["Six?", "6"]


def chat(*turns: object) -> dict[str, object]:
    return {"messages": list(turns)}


USER, ANSWER = {"role": "user", "content": "Six?"}, {"role": "assistant", "content": "6"}


def test_thoughts_and_a_system_prompt_that_stand_beside_the_text_are_kept():
    thinking = {"role": "assistant", "content": "6", "reasoning_content": "It is six.", "tool_calls": None}
    [_, answer] = to_messages(chat(USER, thinking))
    assert answer["content"] == "<think>\nIt is six.\n</think>\n\n6"
    assert to_messages(chat(USER, thinking | {"content": answer["content"]}))[1] == answer
    for record in (chat(USER, ANSWER), {"instruction": "Six?", "output": "6"}):
        assert to_messages(record | {"system": "Be brief."}) == [CHAT[0], USER, ANSWER]
        assert to_messages(record | {"system": None}) == [USER, ANSWER]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([1, 2], "list, not an object"),
        ("text", "str, not an object"),
        ({"text": "Six is 6."}, "columns ['text'] are no known format; name them with data.prompt_column"),
        ({"prompt": "Six?"}, "columns ['prompt'] are no known format"),
        ({"prompt": "Six?", "response": None}, "the assistant's text is None"),
        ({"prompt": "Six?", "response": "  "}, "the assistant's text is '  '"),
        ({"prompt": "", "response": "6"}, "the user's text is ''"),
        ({"prompt": "Six?", "response": 6}, "the assistant's text is 6"),
        ({"instruction": None, "input": "six", "output": "6"}, "the user's text is None"),
        ({"instruction": "Number?", "input": {"word": "six"}, "output": "6"}, "the user's text is {'word': 'six'}"),
        (chat(), "messages is not a list of turns"),
        ({"conversations": None}, "conversations is not a list of turns"),
        (chat("Six?"), "a turn of messages is a str, not an object"),
        (chat(USER, {"role": "tool", "content": "6"}), "by 'tool', none of"),
        (chat(USER, {"role": ["assistant"], "content": "6"}), "by ['assistant'], none of"),
        (chat(USER, {"role": "assistant"}), "the assistant's text is None"),
        (chat(USER, {"role": "assistant", "content": "half \ud800"}), "the assistant's text is not Unicode"),
        (chat(USER, ANSWER | {"tool_calls": [{"name": "six"}]}), "the assistant's message is more than text"),
        (chat(USER, ANSWER | {"reasoning_content": ["Six."]}), "the assistant's message is more than text"),
        ({"system": 6, **chat(USER, ANSWER)}, "the system's text is 6"),
        (chat(USER), "the assistant says nothing"),
        (chat(ANSWER, USER), "it does not begin with the user"),
        (chat({"role": "system", "content": "Be brief."}), "it does not begin with the user"),
    ],
)
def test_a_malformed_record_is_refused_with_the_reason(record, reason):
    with pytest.raises(MalformedRecord) as error:
        to_messages(record)
    assert reason in str(error.value)


def test_missing_named_columns_are_refused_by_name():
    with pytest.raises(MalformedRecord, match=r"no column 'solution' among \['task'\]"):
        to_messages({"task": "Six?"}, ("task", "solution"))


def test_one_malformed_record_in_a_hundred_is_borne_and_two_are_not():
    tally = MalformedTally("data.jsonl")
    tally.seen = 100
    tally.skip("data.jsonl:7", "not JSON")
    tally.check(final=True)
    tally.skip("data.jsonl:8", "not JSON")
    with pytest.raises(ValueError, match=r"data\.jsonl: 2 of 100 records are malformed, more than 1%"):
        tally.check(final=True)


def test_the_share_of_malformed_records_is_judged_after_enough_of_them():
    tally = MalformedTally("data.jsonl")
    tally.seen = MalformedTally.ENOUGH - 1
    for line in range(20):
        tally.skip(f"data.jsonl:{line}", "not JSON")
    tally.check()
    tally.seen += 1
    with pytest.raises(ValueError) as error:
        tally.check()
    assert str(error.value).count("not JSON") == MalformedTally.SHOWN

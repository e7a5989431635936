"""What counts as a conversation, and which of its turns are learned."""

from __future__ import annotations

import json

import pytest
from some_data import SHARED

from c2c_lightning.data.records import MalformedRecord, MalformedTally, to_examples, to_messages
from c2c_lightning.data.source import Source
from c2c_lightning.data.stored import StoredExamples
from c2c_lightning.errors import UserError

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
        assert to_messages(record | {"system": None, "system_prompt": "Be brief."}) == [CHAT[0], USER, ANSWER]


CALL = {"type": "function", "function": {"name": "sum", "arguments": {"of": [2, 4]}}}
TOOL = {"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}
CALLED = [
    USER | {"tools": [TOOL]},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "6"},
    ANSWER,
]
THOUGHT = "<think>\nA sum.\n</think>\n\n"
TOOL_CHATS = {
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": "Six?"},
            {"from": "function_call", "value": '{"name": "sum", "arguments": {"of": [2, 4]}}'},
            {"from": "observation", "value": "6"},
            {"from": "gpt", "value": "6"},
        ],
        "tools": json.dumps([TOOL["function"]]),
    },
    "OpenAI": {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "sum", "arguments": '{"of": [2, 4]}'}}],
            },
            {"role": "ipython", "content": "6"},
            ANSWER,
        ],
        "tools": [TOOL],
    },
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "Six?"}]},
            {
                "role": "assistant",
                "content": [{"type": "tool_call", "value": '{"name": "sum", "arguments": {"of": [2, 4]}}'}],
            },
            {"role": "tool", "content": [{"type": "text", "text": "6"}]},
            {"role": "assistant", "content": [{"type": "text", "value": "6"}]},
        ],
        "tools": [json.dumps(TOOL)],
    },
    "a table's cells": {"messages": json.dumps([USER, *CALLED[1:]]), "tools": json.dumps([TOOL])},
}


@pytest.mark.parametrize("name", TOOL_CHATS)
def test_chats_with_tools_are_what_chat_templates_take(name):
    assert to_messages(TOOL_CHATS[name]) == CALLED


def test_every_call_is_learned_as_every_other_turn_of_the_assistants():
    assert [len(e.prompt) for e in to_examples(CALLED, "here", "every")] == [1, 3]


def test_several_calls_and_thoughts_stand_in_one_turn():
    call = {"type": "tool_call", "value": json.dumps(CALL["function"])}
    parts = [{"type": "reasoning", "value": "A sum."}, call, call]
    [_, turn] = to_messages(chat(USER, {"role": "assistant", "content": parts}))
    assert turn == {"role": "assistant", "content": THOUGHT, "tool_calls": [CALL] * 2}


def test_a_call_that_is_no_json_stays_text():
    turns = [{"from": "human", "value": "Six?"}, {"from": "function_call", "value": "sum(2, 4)"}]
    assert to_messages({"conversations": turns})[1] == {"role": "assistant", "content": "sum(2, 4)"}


def test_turns_of_weight_0_are_read_and_not_learned():
    messages = to_messages(chat(USER, ANSWER | {"weight": 1}, USER, ANSWER | {"weight": 0}))
    for supervise in ("last", "every"):
        [example] = to_examples(messages, "here", supervise)
        assert example.messages == [USER, ANSWER]
    messages = to_messages(chat(USER, ANSWER | {"weight": 0}, USER, ANSWER))
    [example] = to_examples(messages, "here", "every")
    assert example.messages == [USER, ANSWER, USER, ANSWER]


def test_developers_are_read_as_the_system():
    developer = {"role": "developer", "content": "Be brief."}
    assert to_messages(chat(developer, USER, ANSWER)) == [CHAT[0], USER, ANSWER]
    assert to_messages(chat(CHAT[0], USER, ANSWER) | {"system": "Be brief."}) == [CHAT[0], USER, ANSWER]


def test_exchanges_that_went_before_a_pair_are_turns_of_it():
    record = {"instruction": "Six?", "output": "6", "system": "Be brief.", "history": [["One?", "1"], ["Two?", "2"]]}
    assert to_messages(record) == [*CHAT, USER, ANSWER]
    assert to_messages(record | {"history": json.dumps(record["history"])}) == [*CHAT, USER, ANSWER]


def test_prompt_and_completion_may_be_messages():
    assert to_messages({"prompt": CHAT[:4], "completion": CHAT[4:]}) == CHAT
    assert to_messages({"prompt": CHAT[:4], "completion": "2"}) == CHAT
    assert to_messages({"prompt": CHAT[:4], "completion": CHAT[4:]}, ("prompt", "completion")) == CHAT


@pytest.mark.parametrize(
    "record",
    [
        {"context": "Four and two.", "question": "Six?", "answer": "6"},
        {"context": "Four and two.", "question": "Six?", "reference": ["6", "six"]},
        {"context": "Four and two.", "question": "Six?", "reference": '["6", "six"]'},
        {"context": "Four and two.", "question": "Six?", "answer": ["6", "six"]},
        {"instruction": "Four and two.", "context": "Six?", "response": "6"},
    ],
)
def test_what_a_question_is_about_is_part_of_it(record):
    assert [m["content"] for m in to_messages(record)] == ["Four and two.\n\nSix?", "6"]


@pytest.mark.parametrize(
    "record",
    [
        {"context": "Four and two.", "question": "Six?", "answer": "6"},
        {"instruction": "Six?", "input": "Four and two.", "output": "6"},
        {"instruction": "Six?", "context": "Four and two.", "response": "6"},
    ],
)
def test_one_file_gives_every_condition_of_who_reads_what_a_question_is_about(record):
    asked = {context: to_messages(record, context=context)[0] for context in ("sharer", "receiver", "nobody")}
    question = {"role": "user", "content": "Six?"}
    assert asked["nobody"] == question
    assert asked["sharer"] == {**question, "private": "Four and two."}
    assert asked["receiver"] == {**question, "receiver_only": "Four and two."}


def test_a_record_without_a_text_has_none_that_one_model_alone_reads():
    assert to_messages({"question": "Six?", "answer": "6"}, context="sharer") == to_messages(
        {"question": "Six?", "answer": "6"}
    )


EXAMPLES = {
    "glaive_toolcall_en_demo.json": (300, 957),
    "reason_tool_use_demo_50.jsonl": (50, 112),
    "kto_en_demo.json": (300, 487),
    "alpaca_en_demo.json": (999, 999),
    "alpaca_zh_demo.json": (1000, 1000),
    "dummy_conversation.json": (500, 1000),
}


@pytest.mark.skipif(not SHARED.exists(), reason="the real text is not beside the checkout")
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_chat_of_the_real_text_is_read(name):
    tally = MalformedTally(name)
    counts = []
    for supervise in ("last", "every"):
        examples = list(Source(str(SHARED / "chats" / name), supervise=supervise).examples(tally))
        counts.append(len(examples))
        assert ("tools" in examples[0].messages[0]) == ("tool" in name)
    assert tuple(counts) == EXAMPLES[name]
    assert tally.skipped == []


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
        (chat(USER, {"role": "tool", "content": "6"}), "the assistant says nothing"),
        (chat(USER, {"role": "judge", "content": "6"}), "by 'judge', none of"),
        (chat(USER, {"role": ["assistant"], "content": "6"}), "by ['assistant'], none of"),
        (chat(USER, {"role": "assistant"}), "the assistant's text is None"),
        (chat(USER, {"role": "assistant", "content": "half \ud800"}), "the assistant's text is not Unicode"),
        (chat(USER, ANSWER | {"tool_calls": [{"names": "six"}]}), "calls {'names': 'six'}, which has no name"),
        (chat(USER | {"tool_calls": [{"name": "six"}]}, ANSWER), "the user's message has calls or thoughts"),
        (chat(USER, ANSWER | {"reasoning_content": ["Six."]}), "the assistant's message has calls or thoughts"),
        (chat(USER, ANSWER | {"weight": 0}), "every turn of the assistant has weight 0"),
        (
            chat({"role": "user", "content": [{"type": "image"}]}, ANSWER),
            "the user's text has {'type': 'image'} as a part",
        ),
        ({"tools": "[{", **chat(USER, ANSWER)}, "its tools are '[{', no list of objects"),
        ({"prompt": "Six?", "response": "6"} | {"history": ["Five?"]}, "history has 'Five?', no pair of texts"),
        ({"prompt": "Six?", "response": "6"} | {"history": 5}, "history has 5, no pair of texts"),
        ({"question": "Six?", "reference": []}, "reference has no answer"),
        ({"prompt": ["Five?", "Six?"], "response": "6"}, "the user's text is ['Five?', 'Six?']"),
        ({"prompt": "Six?", "response": ["5", "6"]}, "the assistant's text is ['5', '6']"),
        ({"question": "Six?", "choices": ["5", "6"], "answer": "B"}, "'B' is one of its choices"),
        ({"question": "Six?", "choices": ["5", "6"], "answer": 1}, "1 is one of its choices"),
        ({"question": "Two?", "choices": "[1, 2, 3]", "answer": "2"}, "'2' is one of its choices"),
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


def test_the_text_of_a_choice_is_learned():
    for answer in ("6", "a unit"):
        record = {"question": "Six?", "choices": ["a unit", "6"], "answer": answer}
        assert to_messages(record)[1]["content"] == answer


def test_questions_without_an_answer_are_left_out_of_training_and_counted(tmp_path, caplog):
    answers = [["six"], [], [], ["seven"]]
    records = [{"question": f"{i}?", "answers": {"text": texts}} for i, texts in enumerate(answers)]
    (tmp_path / "squad.jsonl").write_text("\n".join(map(json.dumps, records)))
    source = Source(str(tmp_path / "squad.jsonl"))
    for _ in range(2):  # also where the examples are stored already
        caplog.clear()
        assert [example.response for example in StoredExamples.of(source)] == ["six", "seven"]
        assert caplog.messages == [f"{tmp_path}/squad.jsonl: 2 questions without an answer are left out"]
    (tmp_path / "none.jsonl").write_text(json.dumps(records[1]))
    with pytest.raises(UserError, match=r"data\.path .*none\.jsonl' has no question with an answer"):
        StoredExamples.of(Source(str(tmp_path / "none.jsonl")))


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


def test_a_private_text_stays_beside_the_users_content():
    turns = [{"role": "user", "content": "Where?", "private": "In Oslo."}, {"role": "assistant", "content": "Oslo"}]
    assert to_messages({"messages": turns}) == turns
    turns[1]["private"] = "In Cairo."
    with pytest.raises(MalformedRecord, match=r"the assistant's message has 'In Cairo\.' as private"):
        to_messages({"messages": turns})


def test_a_private_text_counts_among_the_characters_of_its_prompt():
    turns = [{"role": "user", "content": "Where?", "private": "In Oslo."}, {"role": "assistant", "content": "Oslo"}]
    [example] = to_examples(turns, "", "last")
    assert example.lengths == (14, 4)

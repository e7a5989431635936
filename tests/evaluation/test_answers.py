"""Answers outlive the process that gave them."""

from c2c_lightning.evaluation.asking.answers import Answer, AnswerFile
from c2c_lightning.evaluation.benchmarks import OwnQuestions


def answer(name: str, **values) -> Answer:
    given = {
        "id": name,
        "response": "Norway 👍🏽\n",
        "extracted": None,
        "score": 0.5,
        "confidence": -0.25,
        "letters": [-1.0, -2.0],
        "truncated": False,
        "prefill_seconds": 0.1,
        "decode_seconds": 0.2,
        "receiver_tokens": 3,
        "sharer_tokens": 0,
        "handed_over": 12,
    }
    return Answer(**{**given, **values})


def test_answers_come_back_as_they_were(tmp_path):
    file = AnswerFile(tmp_path, "nano", "c2c")
    assert file.read() == {}
    file.append([answer("a"), answer("b", extracted="x", letters=None)])
    file.append([answer("c")])
    assert list(file.read().values()) == [answer("a"), answer("b", extracted="x", letters=None), answer("c")]


def test_an_answer_that_was_cut_off_is_dropped_and_does_not_spoil_the_next(tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"id": "a", "question": "?", "choices": ["x", "y"], "answer": "A"}\n')
    file, benchmark = AnswerFile(tmp_path, "nano", "c2c"), OwnQuestions(str(questions))
    file.append([answer("a"), answer("b")])
    whole = file.path.read_bytes()
    last = len(whole) - whole.index(b"\n") - 1
    for cut in (1, 2, last // 2, last - 1, last):
        file.path.write_bytes(whole[:-cut])
        assert list(file.read()) == ["a"]
        assert list(file.resume(benchmark, lambda kept, item: kept)) == ["a"]
        file.append([answer("c")])
        assert list(file.read()) == ["a", "c"]

"""Prompts are data: every shipped file renders, and a wrong one is one clear error."""

from __future__ import annotations

import pytest

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.benchmarks import ARCChallenge, Prompt
from c2c_lightning.evaluation.benchmarks.prompt import SHIPPED, fill

VALUES = {"question": "Why?", "context": "{So}.", "choices": "A. a\nB. b", "letters": "A, B"}
ANSWER = {"answer": "A", "text": "a", "solution": "It follows."}


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_prompt_renders(file):
    prompt = Prompt.load(file.stem)
    assert (prompt.name, prompt.version >= 1) == (file.stem, True)
    for each in (prompt, *prompt.subjects.values()):
        assert "Why?" in fill(each.message, VALUES)
        assert "A" in fill(each.response, ANSWER).upper()
        assert each.choices("AB", ("{a}", "b")) == "A. {a}\nB. b"


def test_the_shipped_choices_are_in_the_papers_form():
    prompt = Prompt.load("choices")
    assert fill(prompt.message, {**VALUES, "context": ""}).split("\n\n")[:2] == ["Why?", "A. a\nB. b"]
    assert len(fill(prompt.message, {**VALUES, "context": ""}).split("\n\n")[2].splitlines()) == 1


def test_paragraphs_with_nothing_in_them_are_left_out():
    template = "Text: {context}\n\n{question}\n\nPlain {{words}}.\n\n{choices}{letters}"
    assert fill(template, {**VALUES, "context": "", "choices": "", "letters": ""}) == "Why?\n\nPlain {words}."
    assert fill(template, VALUES).startswith("Text: {So}.\n\n")


def test_a_users_own_file_stands_in_by_its_path(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nversion: 3\nmessage: 'Q: {question} {choices}'\nchoice: '<{letter}> {text};'\n"
        "response: 'It is {answer}: {text}'\nsubjects: {maths: {message: 'Reckon: {question}'}}\n"
    )
    prompt = Prompt.load(str(file))
    assert (prompt.name, prompt.version) == ("mine", 3)
    assert prompt.choices("AB", ("a", "b")) == "<A> a;\n<B> b;"
    assert (prompt.of("maths").message, prompt.of("other").message) == ("Reckon: {question}", prompt.message)
    assert prompt.of("maths").response == prompt.response


GOOD = "name: x\nversion: 1\nmessage: '{question}'\nresponse: '{answer}'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("question}", "qestion}"), r"message: unknown placeholder {qestion}\. Did you mean question\?"),
        (GOOD.replace("question}", "question.x}"), r"message: unknown placeholder {question.x}"),
        (GOOD.replace("question}", "question!r}"), r"message: unknown placeholder {question!r}"),
        (GOOD.replace("{answer}", "{}"), r"response: unknown placeholder {}\. There are {answer}, {text}, {solution}"),
        (GOOD.replace("{answer}", "{answer"), "response: .*; double a brace that is no placeholder"),
        (GOOD.replace("{question}", "Well?"), r"message does not ask the question; put {question} into it"),
        (GOOD.replace("response", "reponse"), r"unknown key 'reponse'\. Did you mean response\?"),
        (GOOD.replace("version: 1\n", ""), "is damaged: version: Field required"),
        (GOOD.replace("version: 1", "version: one"), "version: Input should be a valid integer, not 'one'"),
        (GOOD.replace("version: 1", "version: true"), "version: Input should be a valid integer, not True"),
        (GOOD + "choice: '{letter} {txt}'", r"choice: unknown placeholder {txt}\. Did you mean text\?"),
        (GOOD + "subjects: [a]", "subjects is damaged: Input should be a valid dictionary"),
        (GOOD + "subjects: {a: {message: 'Well?'}}", "subject a: message does not ask the question"),
        ("message: {question", "is no YAML: "),
        ("- a\n", r"Input should be a valid dictionary, not \['a'\]. Give keys such as name"),
        ("", "Input should be a valid dictionary, not None"),
        (GOOD + "choice: " + "[" * 3000, "is no YAML: maximum recursion"),
    ],
)
def test_a_wrong_prompt_file_is_one_error_that_names_it(text, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        ARCChallenge("x", prompt=str(file))
    assert str(error.value).startswith(f"arc_challenge.prompt: {file}")


def test_a_wrong_name_gets_the_right_one():
    with pytest.raises(
        UserError, match=r"arc_challenge.prompt 'choises' is no shipped prompt and no file\. Did you mean choices\?"
    ):
        ARCChallenge("x", prompt="choises")
    with pytest.raises(
        UserError, match=r"no shipped prompt and no file\. Give one of choices, .* or a YAML file's path"
    ):
        Prompt.load("zzz")

"""The letter of a response is read where it is stated, and prose is never taken for one."""

from __future__ import annotations

import pytest

from c2c_lightning.evaluation.benchmarks.extraction import extract_letter, without_thinking

ABCD, ALL = "ABCD", "ABCDEFGHIJ"

STATED = [
    ("C", "C"),
    ("C.", "C"),
    ("c", "C"),
    ("a", "A"),
    ("(c)", "C"),
    ("c)", "C"),
    ("[D]", "D"),
    (" B \n", "B"),
    ("**B**", "B"),
    ("`B`", "B"),
    ('"B"', "B"),
    ("Ｂ", "B"),
    ("（Ｃ）", "C"),
    ("B. Paris", "B"),
    ("B) Paris", "B"),
    ("B: Paris", "B"),
    ("(B) Paris", "B"),
    ("b) Paris", "B"),
    ("B - Paris", "B"),
    ("B.巴黎", "B"),
    ("A. A dog", "A"),
    ("**B. Paris**", "B"),
    ("B because Paris is in France.", "B"),
    ("B, since Paris is in France.", "B"),
    ("C\n\nChoice A is wrong because it is too old.", "C"),
    ("B. Paris\n\nOption A names a river, and (C) a lake.", "B"),
    ("Answer: C", "C"),
    ("answer: c", "C"),
    ("Answer:\nC", "C"),
    ("**Answer:** C", "C"),
    ("Answer: (C) Paris", "C"),
    ("Answer C", "C"),
    ("Answer is b.", "B"),
    ("The answer is B", "B"),
    ("The answer is **B**", "B"),
    ("The answer is (B).", "B"),
    ("The answer is: B. Paris", "B"),
    ("The answer is A.", "A"),
    ("The answer is A because it came first.", "A"),
    ("The answer is option B", "B"),
    ("The correct answer is therefore B.", "B"),
    ("The correct answer to the question is B.", "B"),
    ("The answer I would give is D.", "D"),
    ("The best choice is C, not A.", "C"),
    ("The correct option is D", "D"),
    ("A good answer is B.", "B"),
    ("Final answer - (D)", "D"),
    ("### Final Answer\n\nD", "D"),
    ("\\boxed{D}", "D"),
    ("$\\boxed{D}$", "D"),
    ("$\\boxed{\\text{D}}$", "D"),
    ("Thus \\boxed{\\textbf{(D)}}.", "D"),
    ("So we have \\[\\boxed{\\mathrm{B}}\\]", "B"),
    ("The answer is $B$.", "B"),
    ("<answer>B</answer>", "B"),
    ("option B", "B"),
    ("Option B", "B"),
    ("It must be option B then", "B"),
    ("I think it's B.", "B"),
    ("I choose B", "B"),
    ("I would go with (B).", "B"),
    ("Paris (B)", "B"),
    ("B is correct.", "B"),
    ("A is the correct answer.", "A"),
    ("Option C is the best answer since the others are false.", "C"),
    ("答案是C", "C"),
    ("答案：C", "C"),
    ("正确答案：B", "B"),
    ("正确答案是 **B**。", "B"),
    ("正确选项是B", "B"),
    ("因此选D。", "D"),
    ("故选：A", "A"),
    ("B选项正确", "B"),
    ("答案是C因为它最大", "C"),
    ("<think>A looks right. The answer is A.</think> B", "B"),
    ("<think>\n\n</think>\n\nThe answer is D.", "D"),
    ("First I thought the answer is A. On reflection, the answer is B.", "B"),
    ("The answer is A? No: the correct answer is C.", "C"),
    ("A. London\nB. Paris\nC. Rome\nThe answer is B.", "B"),
    ("Answer with A, B, C or D.\nAnswer: D", "D"),
    ("The answer is B, A is wrong.", "B"),
    ("The answer is not A. It is C.", "C"),
    ("The capital of France is Paris. Therefore, the answer is B.", "B"),
    ("B. Paris is the capital, and a city on a river.", "B"),
    ("Answer: B\n\nExplanation: A is too far north, C and D are too small.", "B"),
    ("The answer is B. A is wrong, and so are C and D.", "B"),
    ("The correct choice is:\n\n**C) Rome**", "C"),
    ("My answer would be D!", "D"),
    ("So the right answer must be (A)", "A"),
    ("A, because it is first", "A"),
    ("Let me think.\n\nB", "B"),
    ("I'd say D.", "D"),
    ("Correct answer: b)", "B"),
    ("Answer: 'A'", "A"),
    ("The answer is “B”.", "B"),
    ("The answer is C. A is wrong, and B is correct about one thing only.", "C"),
    ("Let's see.\n\nA. x: This is wrong.\nB. y: This is right.\n\nSo the correct answer is B. y.", "B"),
    ("The answer's B", "B"),
    ("[Answer] B", "B"),
    ('{"answer": "B"}', "B"),
    ("__B__", "B"),
    ("Ans: B", "B"),
    ("The letter is D", "D"),
    ("**Option C: Paris**", "C"),
    ("Therefore, the correct answer is $\\boxed{\\text{B) } 42}$", "B"),
    ("The correct option is (B) and not (A)", "B"),
    ("The answer is not given. Choose A", "A"),
    ("正确的是C", "C"),
    ("C。因为它最大", "C"),
    ("C、巴黎", "C"),
    ("A选项是错误的，所以选B", "B"),
    ("答案选B", "B"),
    ("选项C是正确的", "C"),
    ("本题应选择 D 选项。", "D"),
]

UNREAD = [
    "",
    " ",
    "Choices",
    "Choices: none of them",
    "A good answer needs time.",
    "A dog is an animal.",
    "I think so.",
    "I would say that it depends.",
    "I, too, think so",
    "a dog",
    "The answer is a dog.",
    "The answer is a",
    "The answer is A dog",
    "Answer: A tale of two cities",
    "Answer: A Tale of Two Cities",
    "The answer is I do not know.",
    "Because all of them are right",
    "Dogs bark.",
    "Bees and Cats",
    "Vitamin C is good for you",
    "Hepatitis B is a disease.",
    "It is written in C++",
    "The answer is C++",
    "The answer is C# or so",
    "Answer: D.C.",
    "The answer is E. coli",
    "B cells make antibodies.",
    "C's father",
    "D-Day",
    "The answer is A or B.",
    "The answer is A, B and C.",
    "Answer: A/B",
    "A, B, C, D",
    "Both (A) and (B)",
    "A. London\nB. Paris\nC. Rome\nD. Oslo",
    "Option A or option B",
    "Option A is wrong.",
    "The answer is not A.",
    "B is not correct.",
    "答案不是A",
    "ABCD",
    "Answer: ABCD",
    "Answer with one of A, B, C, D.",
    "<think>The answer is B, but let me",
    "F",
    "An answer as a list: a, b, c",
    "The answer is a matter of taste",
    "As a rule, a b is no c",
    "Grade A eggs",
    "Plan B failed",
    "The answers are A and C",
    "Neither A nor B is correct.",
    "None of A, B, C or D is correct.",
    "The answer could be A or it could be B",
    "There is no correct answer",
    "I cannot choose between B and C.",
    "B\nC",
    "Q: What is it?\nA dog",
    "选项A和B都正确",
    "选项A是错误的",
    "A\nB\nC\nD",
    "It's either A or B",
    "The answer is A 5",
    "Among the options, B fits best.",
    "Answer: None of the above",
    "I choose a dog",
    "It's a cat",
    "I'd pick A dog",
    "That is option A's weakness",
    "A-level students answer best",
    "A. J. Ayer",
    "The answer is E.",
    "x = 3",
    "42",
    "\\boxed{42}",
]


@pytest.mark.parametrize(("response", "letter"), STATED)
def test_the_letter_that_a_response_states_is_read(response, letter):
    assert extract_letter(response, ABCD) == letter


@pytest.mark.parametrize("response", UNREAD)
def test_prose_and_ambiguous_responses_have_no_letter(response):
    assert extract_letter(response, ABCD) is None


@pytest.mark.parametrize("letter", ALL)
def test_every_letter_is_read_in_every_common_form(letter):
    small = letter.lower()
    for form in (
        f"{letter}",
        f"({letter})",
        f"({small})",
        f"{small})",
        f"{letter}. Paris",
        f"Answer: {letter}",
        f"The answer is {letter}.",
        f"The answer is **{letter}**",
        f"\\boxed{{{letter}}}",
        f"$\\boxed{{\\text{{{letter}}}}}$",
        f"option {letter}",
        f"答案是{letter}",
        f"正确答案：{letter}",
        f"Final answer - ({letter})",
        f"<think>A or B?</think> {letter}",
    ):
        assert extract_letter(form, ALL) == letter, form


@pytest.mark.parametrize(
    "response", ["I think so", "I would say so", "I, too", "Answer: I think so", "The answer I gave", "In all", "H2O"]
)
def test_the_pronoun_is_no_letter_even_among_ten(response):
    assert extract_letter(response, ALL) is None


def test_only_letters_that_there_are_count():
    assert extract_letter("E", "ABCDE") == "E"
    assert extract_letter("E", "ABCD") is None
    assert extract_letter("C", "") is None


def test_thinking_that_never_ended_says_nothing():
    assert without_thinking("<think>so <b>") == ""
    assert without_thinking("<think>so</think>\n18") == "18"
    assert without_thinking("so</think> 18") == "18"
    assert without_thinking("18") == "18"

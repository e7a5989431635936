"""How right a response is, by kind of answer: letters, exact text, maths, and the metrics of LongBench.

Every function takes the response and the references, any of which will do, and passes over thinking between
<think> tags. A score is in [0, 1].
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import sympy
from math_verify import parse, verify
from rapidfuzz import fuzz
from rouge_score.rouge_scorer import RougeScorer
from torchmetrics.functional.text import squad

from c2c_lightning.evaluation.benchmarks.extraction import extract_letter, without_thinking
from c2c_lightning.evaluation.benchmarks.item import Grade

# It warns that nobody stops it when it takes long; `_is_heavy` sees to that.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def letter(response: str, answers: Sequence[str], letters: str) -> Grade:
    """Right if the letter that the response chooses is one of the answers."""
    chosen = extract_letter(response, letters)
    return Grade(chosen, float(chosen in answers))


def exact(response: str, answers: Sequence[str]) -> Grade:
    """Right if the response is an answer, but for space around it."""
    said = without_thinking(response)
    return Grade(said or None, float(said in [answer.strip() for answer in answers]))


def math(response: str, answers: Sequence[str]) -> Grade:
    """Right if the response ends in the value of an answer, however it is written: 1234, $1,234.00, \\boxed{1234}.

    A response that marks its result with ####, as GSM8K's solutions do, is read from there on.
    """
    said = without_thinking(response).rpartition("####")[2]
    values = _values(said)
    right = not _is_heavy(values) and any(verify(_reference(a), values, timeout_seconds=None) for a in answers)
    return Grade(str(values[-1]).strip("*$ ") if values else None, float(right))


def _values(text: str) -> list[Any]:
    # No time limit, since that works by a signal, which only main threads can take.
    return parse(text, parsing_timeout=None)


@lru_cache(maxsize=1 << 14)
def _reference(answer: str) -> list[Any]:
    return _values(answer) or [answer.strip()]


def _is_heavy(values: Sequence[Any]) -> bool:
    """Whether comparing would take for ever: a model may well answer 9^{9^{9^9}} or an integral."""
    size = 1
    for value in values:
        for node in sympy.preorder_traversal(value) if isinstance(value, sympy.Basic) else ():
            if isinstance(node, sympy.Integral | sympy.Sum | sympy.Product | sympy.Limit):
                return True
            if isinstance(node, sympy.Pow | sympy.factorial | sympy.binomial):
                counts = node.exp if isinstance(node, sympy.Pow) else node
                if any(power.exp != -1 for power in counts.atoms(sympy.Pow)):
                    return True
                size *= max([1, *(abs(number) for number in counts.atoms(sympy.Number))])
    return size > 1_000_000


def f1(response: str, answers: Sequence[str]) -> Grade:
    """The words in common with the best answer, articles, case and punctuation aside (SQuAD's F1)."""
    said = without_thinking(response)
    scored = squad(
        {"prediction_text": said, "id": "0"},
        {"answers": {"answer_start": [0] * len(answers), "text": list(answers)}, "id": "0"},
    )
    return Grade(said or None, float(scored["f1"]) / 100)


def rouge_l(response: str, answers: Sequence[str]) -> Grade:
    """The longest common subsequence of words with the best answer, as F-measure (ROUGE-L)."""
    scorer = RougeScorer(["rougeL"])
    return _best(response, answers, lambda said, answer: scorer.score(answer, said)["rougeL"].fmeasure)


def code_similarity(response: str, answers: Sequence[str]) -> Grade:
    """How like the next line of code is to the answer, by edits.

    As LongBench does, the line is the response's first without any comment or code-fence mark; where there is no
    such line it is the first at all, so that a right line with a mark in it is right.
    """
    lines = [line for line in without_thinking(response).split("\n") if line.strip()]
    code = [line for line in lines if not any(mark in line for mark in ("`", "#", "//"))]
    line = (code or lines or [""])[0]
    # Space around it tells nothing: the response's own was lost when it was decoded.
    return _best(line, answers, lambda said, answer: fuzz.ratio(said.strip(), answer.strip()) / 100)


def classification(response: str, answers: Sequence[str], classes: Sequence[str]) -> Grade:
    """Right if the answer is the only class named; a share of that if others are named too.

    A class whose name is part of the answer's name is not counted beside it.
    """

    def score(said: str, answer: str) -> float:
        named = [name for name in classes if name in said and not (name in answer and name != answer)]
        return 1 / len(named) if answer in named else 0.0

    return _best(response, answers, score)


def count(response: str, answers: Sequence[str]) -> Grade:
    """The share of the response's whole numbers that are the answer."""
    return _best(response, answers, _share_of_numbers)


def retrieval(response: str, answers: Sequence[str]) -> Grade:
    """The share of the response's whole numbers that are the number in the answer: the 5 of "Paragraph 5"."""
    return _best(response, answers, _share_of_numbers)


def _share_of_numbers(said: str, answer: str) -> float:
    numbers, right = re.findall(r"\d+", said), re.findall(r"\d+", answer)
    return numbers.count(right[0]) / len(numbers) if numbers and right else 0.0


def _best(response: str, answers: Sequence[str], score: Callable[[str, str], float]) -> Grade:
    said = without_thinking(response)
    return Grade(said or None, max(score(said, answer) for answer in answers) if said else 0.0)

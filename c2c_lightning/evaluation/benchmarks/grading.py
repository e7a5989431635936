"""How right a response is, by kind of answer: letters, exact text, words in common, mathematics.

Every function takes the response and the references, any of which will do, and passes over thinking between
<think> tags. A score is in [0, 1]. Nothing else counts, so stored responses can be graded again.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from string import punctuation as PUNCTUATION
from typing import Any

from c2c_lightning.evaluation.benchmarks.extraction import extract_letter, without_thinking
from c2c_lightning.evaluation.benchmarks.item import Grade
from c2c_lightning.files import json_digest

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("math_worker.py")
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# Thai, Lao, Myanmar, Khmer, kana, and Chinese characters.
UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
SECONDS = 5.0  # of computing for one response; whatever ends at all takes milliseconds


@cache
def version() -> str:
    """The same as long as responses are graded the same: of this folder's code, and of the libraries that grade."""
    libraries = [each for each in importlib.metadata.distributions() if each.name in ("math-verify", "lm_eval")]
    code = [file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))]
    return json_digest([code, sorted((each.name, each.version) for each in libraries)])[:16]


def letter(response: str, answers: Sequence[str], letters: str) -> Grade:
    """Right if the letter that the response chooses is one of the answers."""
    chosen = extract_letter(response, letters)
    return Grade(chosen, float(chosen in answers))


def exact(response: str, answers: Sequence[str]) -> Grade:
    """Right if the response is an answer (SQuAD's exact match, arXiv 1606.05250)."""
    return _best(response, answers, lambda said, answer: said == answer)


def contains(response: str, answers: Sequence[str]) -> Grade:
    """Right if an answer stands in the response, word for word and with whole words."""
    return _best(response, answers, lambda said, answer: f" {' '.join(answer)} " in f" {' '.join(said)} ")


def f1(response: str, answers: Sequence[str]) -> Grade:
    """The words in common with the best answer (SQuAD's F1)."""

    def score(said: list[str], answer: list[str]) -> float:
        return 2 * (Counter(said) & Counter(answer)).total() / (len(said) + len(answer))

    return _best(response, answers, score)


def _best(response: str, answers: Sequence[str], score: Callable[[list[str], list[str]], float]) -> Grade:
    said = without_thinking(response)
    return Grade(said or None, float(max(score(words(said), words(answer)) for answer in answers)) if said else 0.0)


def words(text: str) -> list[str]:
    """The words of a text without case, articles and punctuation, as SQuAD's official script compares them.

    Scripts that put no spaces between words count by characters, and punctuation is that of any script, as in MLQA's
    (arXiv 1910.07475). Of a text that would be left without any, such as "A" or "%", all is kept.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    plain = "".join(
        c for c in UNSPACED.sub(r" \g<0> ", text) if c not in PUNCTUATION and unicodedata.category(c)[0] != "P"
    )
    return ARTICLES.sub(" ", plain).split() or UNSPACED.sub(r" \g<0> ", text).split()


def math(response: str, answers: Sequence[str]) -> Grade:
    """Right if the response ends in the value of an answer, however it is written: 1234, $1,234.00, \\boxed{1234}.

    A response that marks its result with ####, as GSM8K's solutions do, is read from there on. One whose value
    cannot be computed in `SECONDS` counts as unread, so it is not right, and a warning tells of it.
    """
    return _math(without_thinking(response).rpartition("####")[2], tuple(answers))


@lru_cache(maxsize=1 << 16)  # many methods give the same response, and it should cost its time but once
def _math(said: str, answers: tuple[str, ...]) -> Grade:
    reply = _worker(os.getpid()).ask([said, answers])
    return Grade(None, 0.0) if reply is None else Grade(*reply)


class MathWorker:
    """A process that compares mathematics, started when it is needed and again after one that had to be ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def ask(self, request: Any) -> Any:
        """The worker's reply; None if the request ended it."""
        with self.lock:
            process = self.process = self.process or self._start()
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BaseException:  # interrupted: the reply would be taken for that to the next request
                process.kill()
                self.process = None
                raise
            if line:
                return json.loads(line)
            self.process = None
            status = process.wait()
        if status > 0:
            raise RuntimeError(f"{WORKER.name} ended with status {status}; its own error stands above")
        reason = "took too long" if status == -signal.SIGPROF else f"ended by {signal.Signals(-status).name}"
        log.warning("a response could not be graded and counts as unread (%s): %.80r", reason, request[0])
        return None

    def _start(self) -> subprocess.Popen[str]:
        # -P: the folder of the worker's file is no place to import from. A session of its own: Ctrl-C is not for it.
        command = [sys.executable, "-P", str(WORKER), str(SECONDS)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
        )


@cache
def _worker(pid: int) -> MathWorker:
    """The worker of a process: one that was forked must not read the replies to its parent."""
    return MathWorker()

"""Compares mathematics in a process of its own, which `grading.py` starts: one JSON line in, one out.

It imports nothing of ours, so that it starts in half a second. Only a signal that is not caught ends sympy in the
midst of a computation, and only a process can be ended so.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

MEMORY = 4 << 30  # bytes: 10^{10^{10}} fills any memory sooner than its time is over


def main(limit: float) -> None:
    """Answers every request with [what was read, score].

    Args:
        limit: seconds of computing that one request may take. They are of the processor, not of the clock, so a busy
            machine changes no grade. The process ends when they are over.
    """
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of the time limits that are off
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with suppress(ValueError, OSError):  # not every system can
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, limit)
        try:
            reply = grade(*json.loads(line))
        except (MemoryError, RecursionError):
            reply = (None, 0.0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


def grade(said: str, answers: list[str]) -> tuple[str | None, float]:
    """What was read, and whether it has the value of an answer."""
    values = _values(said)
    right = any(verify(_reference(answer), values, timeout_seconds=None) for answer in answers)
    return str(values[-1]).strip("*$ ") if values else None, float(right)


def _values(text: str) -> list[Any]:
    return parse(text, parsing_timeout=None)


@lru_cache(maxsize=1 << 14)
def _reference(answer: str) -> list[Any]:
    return _values(answer) or [answer.strip()]


if __name__ == "__main__":
    main(float(sys.argv[1]))

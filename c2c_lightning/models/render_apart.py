"""Renders chat templates within limits of time and memory, run as a script in a process of its own; see `rendering.rendered`.

stdin has one pickle after another: a conversation, a template and its variables. The answer to each is a line of JSON:
{"text"}, {"refusal"}, or {} if it takes too much memory. A template that takes too long has the process killed by
SIGPROF, which also ends one long multiplication, as nothing in Python would.
"""

import json
import pickle
import resource
import signal
import sys
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

CPU_SECONDS = 2
MEMORY_BYTES = 5 * 2**28  # of which Python, numpy and transformers take 150 MB


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while sys.stdin.buffer.peek(1):
        given = pickle.load(sys.stdin.buffer)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        answer = render(*given)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def render(messages: list[dict[str, Any]], template: str, variables: dict[str, Any]) -> bytes:
    try:
        [text], _ = render_jinja_template([messages], chat_template=template, **variables)
        return json.dumps({"text": text}).encode()
    except MemoryError:
        return b"{}"
    except Exception as error:  # whatever a template raises
        return json.dumps({"refusal": str(error)}).encode()


if __name__ == "__main__":
    main()

"""Conversations as text, by chat templates that may be anybody's."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from c2c_lightning.errors import UserError
from c2c_lightning.models import render_apart
from c2c_lightning.models.chat import Message

CHARACTERS = 10**6  # that a template may print besides ten times what it is given


class TemplateRunsOn(Exception):
    """A chat template takes too much time or memory for a conversation.

    No UserError, or whoever tries another reading of a conversation that is refused would try, and wait, again and again;
    but caused by one, so that users are told what it says.
    """


def rendered(tokenizer: Tokenizer, messages: list[Message], **variables: Any) -> str:
    """A conversation as text: what `apply_chat_template` gives, within limits.

    A template is a program of whoever made the model, and may compute for ever for some contents and not for others. So
    all are rendered in a process of its own, one for each of ours, which nothing in a template can hold up.

    Args:
        tokenizer: whose template is rendered.
        messages: the conversation.
        **variables: for the template, `tools` and `add_generation_prompt` among them.

    Raises:
        TemplateRunsOn: it takes more than the limits.
        ValueError: it refuses the conversation.
    """
    # As apply_chat_template hands them over.
    given = [{key: value for key, value in message.items() if value is not None} for message in messages]
    template = tokenizer.get_chat_template(tools=variables.get("tools"))
    request = pickle.dumps((given, template, {**tokenizer.special_tokens_map, **variables}))
    line, code = _apart.ask(request)
    answer = json.loads(line) if line else {}
    if "refusal" in answer:
        raise ValueError(answer["refusal"])
    if "text" in answer and len(answer["text"]) <= CHARACTERS + 10 * len(request):
        return answer["text"]
    if code == -signal.SIGPROF:
        problem = f"does not end in {render_apart.CPU_SECONDS} seconds"
    elif code in (None, -signal.SIGKILL):  # the system's, when memory runs out
        problem = "takes or prints gigabytes"
    else:
        problem = f"cannot be rendered (its process ended with {code})"
    last = messages[-1]
    message = (
        f"the chat template of {tokenizer.name_or_path!r} {problem} for the conversation that ends with the "
        f"{last['role']}'s {last['content']!r:.60}: give another template as model.chat.receiver or in "
        "model.chat.sharers, or leave the conversation out"
    )
    raise TemplateRunsOn(message) from UserError(message)


class _Apart:
    """The process that renders: begun when it is first asked, and anew after it was killed; it ends with ours."""

    def __init__(self) -> None:
        self.lock, self.process = threading.Lock(), None

    def ask(self, request: bytes) -> tuple[bytes, int | None]:
        """The answer's line; or nothing, and the exit code."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.process = self.begun()
            try:
                self.process.stdin.write(request)
                self.process.stdin.flush()
                if line := self.process.stdout.readline():
                    return line, None
            except BrokenPipeError:
                pass
            except BaseException:  # Ctrl-C: its answer must not be taken for the next one's
                self.process.kill()
                self.process = None
                raise
            return b"", self.process.wait()

    def begun(self) -> subprocess.Popen:
        # A session of its own: Ctrl-C and SIGTERM are for us, who may still have to render before a checkpoint is saved.
        return subprocess.Popen(
            [sys.executable, "-P", render_apart.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # threads' stacks count as memory
            start_new_session=True,
        )


_apart = _Apart()
os.register_at_fork(after_in_child=_apart.__init__)  # a forked worker of a data loader must not read our answers

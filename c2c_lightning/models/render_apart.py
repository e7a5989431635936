"""Renders a chat template within limits of time and memory, run as a script in a process of its own; see checks.py.

It imports nothing but jinja2, so that it starts in 60 ms. stdin is the JSON of {template, conversations, variables}.
The exit code is 0 if the template ends, whatever it prints or refuses; TOO_LARGE if it takes or prints too much; and
the process is killed by SIGXCPU if it takes too long.
"""

import datetime
import json
import resource
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 2
MEMORY_BYTES = 2**30
CHARACTERS = 10**6
TOO_LARGE = 3


class Generation(jinja2.ext.Extension):
    """transformers' own tags around what a model is to say."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 has it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    given = json.load(sys.stdin)
    # As transformers makes it.
    extensions = [Generation, jinja2.ext.loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    environment.filters["tojson"] = lambda x, ensure_ascii=False, **kwargs: json.dumps(
        x, ensure_ascii=ensure_ascii, **kwargs
    )
    try:
        template = environment.from_string(given["template"])
        for messages in given["conversations"]:
            length = 0
            for piece in template.generate(messages=messages, **given["variables"]):
                length += len(piece)
                if length > CHARACTERS:
                    sys.exit(TOO_LARGE)
    except MemoryError:
        sys.exit(TOO_LARGE)
    except Exception:  # what it refuses, it refuses within limits
        sys.exit(0)


if __name__ == "__main__":
    main()

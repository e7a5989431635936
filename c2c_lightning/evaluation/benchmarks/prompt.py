"""Prompts as data: YAML files with a name, a version and texts with placeholders.

A shipped prompt is named (`choices`), a user's own is a path (`prompts/mine.yaml`). A paragraph all of whose
placeholders are empty is left out, so one text serves questions with and without context. Braces that are no
placeholder are doubled, as in `str.format`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from string import Formatter
from typing import Any

from pydantic import StrictInt

from c2c_lightning.errors import UserError, meant
from c2c_lightning.files import checked, read_yaml

SHIPPED = Path(__file__).parent / "prompts"
PLACEHOLDERS = {
    "message": ("question", "context", "choices", "letters"),
    "choice": ("letter", "text"),
    "response": ("answer", "text", "solution"),
}


@dataclass(frozen=True)
class Prompt:
    """The keys of a prompt's file."""

    name: str  # what reports call it
    version: StrictInt  # what they say beside it; a changed text gets a higher one
    message: str  # the user's turn, with {question} and, where the prompt wants them, {context}, {choices}, {letters}
    # The right answer as the message asks for it, with {answer} (letter or reference), {text} (of the right choice) and
    # {solution} (worked steps).
    response: str
    choice: str = "{letter}. {text}"  # the line of one choice
    subjects: Mapping[str, Prompt] = field(default_factory=dict)  # the same keys for single subjects, where they differ

    @classmethod
    def load(cls, name: str, key: str = "prompt") -> Prompt:
        """A shipped prompt by its name, or a user's own by its path; `key` is what a UserError about it begins with."""
        file = SHIPPED / f"{name}.yaml"
        if not file.is_file():
            file = Path(name).expanduser()
        if not file.is_file():
            shipped = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
            hint = meant(name, shipped, f"Give one of {', '.join(shipped)}, or a YAML file's path.")
            raise UserError(f"{key} {name!r} is no shipped prompt and no file. {hint}")
        remedy = "Give keys such as name, version and message, and quote texts that hold ':' or '{'."
        texts = read_yaml(file, dict[str, Any], f"{key}:", remedy)
        return cls._checked(texts, f"{key}: {file}")

    @classmethod
    def _checked(cls, texts: dict[str, Any], where: str) -> Prompt:
        shared = {key: value for key, value in texts.items() if key != "subjects"}
        for key in shared:
            if key not in (known := [each.name for each in fields(cls)]):
                raise UserError(f"{where}: unknown key {key!r}. {meant(str(key), known, 'Take it out.')}")
        own = checked(texts.get("subjects", {}), dict[str, dict[str, Any]], f"{where}: subjects")
        each = {name: cls._checked({**shared, **keys}, f"{where}, subject {name}") for name, keys in own.items()}
        if each and "message" not in shared:  # every subject has its own
            shared["message"] = next(iter(each.values())).message
        prompt = checked({**shared, "subjects": each}, cls, where)
        used = {
            key: known_placeholders(getattr(prompt, key), names, f"{where}: {key}")
            for key, names in PLACEHOLDERS.items()
        }
        if "question" not in used["message"]:
            raise UserError(f"{where}: message does not ask the question; put {{question}} into it.")
        return prompt

    def of(self, subject: str) -> Prompt:
        """The prompt of one subject: its own where it has one."""
        return self.subjects.get(subject, self)

    def choices(self, letters: str, texts: tuple[str, ...]) -> str:
        """A line for every choice."""
        return "\n".join(self.choice.format(letter=letter, text=text) for letter, text in zip(letters, texts))


def fill(template: str, values: Mapping[str, str]) -> str:
    """A template with its placeholders filled in, without the paragraphs in which all of them are empty."""
    paragraphs = []
    for paragraph in template.strip("\n").split("\n\n"):
        used = _placeholders(paragraph)
        if not used or any(values[name] for name in used):
            paragraphs.append(paragraph.format(**values))
    return "\n\n".join(paragraphs)


def known_placeholders(template: str, allowed: Sequence[str], where: str) -> list[str]:
    """The placeholders of a template; a UserError if one of them is not allowed, `where` begins its message."""
    try:
        names = _placeholders(template)
    except ValueError as error:
        raise UserError(f"{where}: {error}; double a brace that is no placeholder: {{{{ or }}}}.") from error
    for name in names:
        if name not in allowed:
            hint = meant(name, allowed, f"There are {{{'}, {'.join(allowed)}}}.")
            raise UserError(
                f"{where}: unknown placeholder {{{name}}}. {hint} Double a brace that is none: {{{{ or }}}}."
            )
    return names


def _placeholders(template: str) -> list[str]:
    """What stands between single braces, with any format or conversion, which makes it no known name."""
    parts = Formatter().parse(template)
    return [
        name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        for _, name, spec, conversion in parts
        if name is not None
    ]

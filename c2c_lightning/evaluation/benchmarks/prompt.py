"""Prompts as data: YAML files with a name, a version and texts with placeholders.

A shipped prompt is named (`choices`), a user's own is a path (`prompts/mine.yaml`). Its keys:

    name, version: what reports say of it; a changed text gets a higher version.
    message: the user's turn, with {question} and, where the prompt wants them, {context}, {choices}, {letters}.
    choice: the line of one choice, with {letter} and {text}.
    response: the right answer as the message asks for it, with {answer} (letter or reference), {text} (of the
        right choice) and {solution} (worked steps).
    question: stands in where a record has no question of its own.
    max_new_tokens, metric, first_line: how long answers may be and how they are scored, for LongBench-E.
    subjects: the same keys for single subjects, where they differ.

A paragraph all of whose placeholders are empty is left out, so one text serves questions with and without
context. Braces that are no placeholder are doubled, as in `str.format`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from c2c_lightning.errors import UserError, meant

SHIPPED = Path(__file__).parent / "prompts"
PLACEHOLDERS = {
    "message": ("question", "context", "choices", "letters"),
    "choice": ("letter", "text"),
    "response": ("answer", "text", "solution"),
}


@dataclass(frozen=True)
class Prompt:
    """The texts of a prompt; see the module for its keys."""

    name: str
    version: int
    message: str
    response: str
    choice: str = "{letter}. {text}"
    question: str = ""
    max_new_tokens: int | None = None
    metric: str | None = None
    first_line: bool = False
    subjects: Mapping[str, Prompt] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str, key: str = "prompt") -> Prompt:
        """A shipped prompt by its name, or a user's own by its path.

        Args:
            name: of either.
            key: of the configuration, for messages.

        Raises:
            UserError: there is no such prompt, or its file is wrong.
        """
        file = SHIPPED / f"{name}.yaml"
        if not file.is_file():
            file = Path(name).expanduser()
        if not file.is_file():
            shipped = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
            hint = meant(name, shipped, f"Give one of {', '.join(shipped)}, or a YAML file's path.")
            raise UserError(f"{key} {name!r} is no shipped prompt and no file. {hint}")
        try:
            texts = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{key}: {file} is no YAML: {reason}. Quote texts that hold ':' or '{{'.") from error
        return cls._checked(texts, f"{key}: {file}")

    @classmethod
    def _checked(cls, texts: Any, where: str) -> Prompt:
        if not isinstance(texts, dict):
            raise UserError(f"{where} holds {type(texts).__name__}, not keys such as name, version and message.")
        shared = {key: value for key, value in texts.items() if key != "subjects"}
        subjects = texts.get("subjects", {})
        if not isinstance(subjects, dict) or not all(isinstance(own, dict) for own in subjects.values()):
            raise UserError(f"{where}: subjects must map each subject to its own keys.")
        each = {
            str(subject): cls._checked({**shared, **own}, f"{where}, subject {subject}")
            for subject, own in subjects.items()
        }
        if each and "message" not in shared:  # every subject has its own
            shared["message"] = next(iter(each.values())).message
        _check_keys(shared, where)
        for key, allowed in PLACEHOLDERS.items():
            _check_placeholders(shared.get(key, ""), allowed, f"{where}: {key}")
        if "question" not in _placeholders(shared["message"]):
            raise UserError(f"{where}: message does not ask the question; put {{question}} into it.")
        return cls(**shared, subjects=each)

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


def _check_keys(texts: dict, where: str) -> None:
    types = {field.name: str(field.type) for field in fields(Prompt) if field.name != "subjects"}
    for key in texts:
        if key not in types:
            raise UserError(f"{where}: unknown key {key!r}. {meant(str(key), types, 'Take it out.')}")
    for key in ("name", "version", "message", "response"):
        if key not in texts:
            raise UserError(f"{where}: key {key!r} is missing; add it.")
    kinds = {"str": str, "int": int, "bool": bool}
    for key, value in texts.items():
        kind = kinds[types[key].removesuffix(" | None")]
        if type(value) is not kind:
            raise UserError(f"{where}: {key} must be {kind.__name__}, not {value!r}.")


def _check_placeholders(template: str, allowed: tuple[str, ...], where: str) -> None:
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


def _placeholders(template: str) -> list[str]:
    """What stands between single braces, with any format or conversion, which makes it no known name."""
    parts = Formatter().parse(template)
    return [
        name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        for _, name, spec, conversion in parts
        if name is not None
    ]

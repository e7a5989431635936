"""How to read a report, for someone who was not there."""

from __future__ import annotations

from collections.abc import Sequence

from c2c_lightning.evaluation.report.findings import C2C, RECEIVER, SHARER, Findings
from c2c_lightning.evaluation.report.formatting import NOT_SIGNIFICANT, plain
from c2c_lightning.evaluation.report.section import Section

WORDS = {
    RECEIVER: "the model that answers; it is frozen.",
    SHARER: "the model whose knowledge is handed over; it is frozen too.",
    "fuser": "the only trained part. It writes the sharer's KV cache of the prompt (what the model keeps of a text "
    "that it has read) into the receiver's.",
    "C2C": "Cache-to-Cache: the receiver answers on the cache that the fuser has enriched; no text is passed.",
    "control": "C2C or the receiver, changed in one way on purpose, to see what that changes.",
    "generic control": "one to which the sharer tells nothing of the question at hand. A gain that it has too was "
    "not communicated.",
}
NUMBERS = f"""**Raw gain** is C2C less the receiver alone, on the same questions. Some of it may come about without the \
sharer: any added cache, or a cured liking for some letters, can change answers too.

**Question-specific gain** is C2C less the best of the generic controls, on the same questions; the receiver alone \
counts among them, so this gain is never larger than the raw one. It is conservative: the best control is chosen after the \
fact, which can only make the gain smaller, and its p is the largest over all these controls, so that C2C has to beat \
every one of them.

**Points** are percentage points of accuracy, or hundredths of the full score where answers get partial credit.

**95% interval**: were the benchmark drawn again and again from questions of the same kind, 95 of 100 such intervals \
would hold the true value. Those of a method are Wilson's where all its answers are right or wrong; the others, and \
those of differences, are bootstrapped over questions. They say nothing of what another training of the fuser would \
give.

**p** is how often a difference this large would come about if the two were equally good: by the exact McNemar test \
where all answers are right or wrong, otherwise by flipping the signs of the questions' differences. Below 0.05 it is \
called significant. *{NOT_SIGNIFICANT.capitalize()}* means that this many questions cannot tell the two apart, not \
that they are equal. At the border the p and the interval can disagree; then p decides."""


def reading_guide(found: Sequence[Findings]) -> list[Section]:
    """The words and numbers of a report, explained once for all its benchmarks.

    Args:
        found: the findings that the report is made of, whose methods are explained.
    """
    methods = {name: m for each in found for name, m in each["methods"].items() if name not in (C2C, RECEIVER, SHARER)}
    words = WORDS | {name: f"{_kind(m)}{m['description']}." for name, m in methods.items()}
    listed = "\n".join(f"- **{plain(name)}**: {plain(said)}" for name, said in words.items())
    return [Section("Words", listed), Section("Numbers", NUMBERS)]


def _kind(method: dict) -> str:
    if method["generic"]:
        return "generic control; "
    return "control, but not generic, for it knows the question as well as C2C does; " if method["control"] else ""

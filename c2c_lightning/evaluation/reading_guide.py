"""How to read a report, for someone who was not there."""

from __future__ import annotations

from collections.abc import Sequence

from c2c_lightning.evaluation.findings import Findings
from c2c_lightning.evaluation.formatting import NOT_SIGNIFICANT, plain
from c2c_lightning.evaluation.section import Section


def reading_guide(found: Sequence[Findings]) -> list[Section]:
    """The words and numbers of a report, explained once for all its benchmarks.

    Args:
        found: the findings that the report is made of, whose methods are explained.
    """
    methods = {name: m for each in found for name, m in each["methods"].items()}
    words = {
        "receiver": "the model that answers; it is frozen.",
        "sharer": "the model whose knowledge is handed over; it is frozen too.",
        "fuser": "the only trained part. It writes the sharer's KV cache of the prompt into the receiver's.",
        "C2C": "Cache-to-Cache: the receiver answers on the cache that the fuser has enriched; no text is passed.",
        "control": "C2C or the receiver changed so that nothing about this question can come from the sharer. A gain "
        "that a control has too was not communicated.",
    }
    controls = {name: f"control; {m['description']}." for name, m in methods.items() if m["generic"]}
    others = {
        name: f"{m['description']}; not generic, since it knows the question as well as C2C does."
        for name, m in methods.items()
        if m["control"] and not m["generic"]
    }
    listed = "\n".join(f"- **{plain(name)}**: {plain(said)}" for name, said in (words | controls | others).items())
    numbers = f"""**Question-specific gain** is C2C less the best of the generic controls, on the same questions; the receiver alone \
counts among them. It is conservative: the best control is chosen after the fact, which can only make the gain \
smaller, and its p is the largest over all these controls, so that C2C has to beat every one of them.

**Points** are percentage points of accuracy, or hundredths of the full score where answers get partial credit.

**95% interval**: were the benchmark drawn again and again from questions of the same kind, 95 of 100 such intervals \
would hold the true value. Those of accuracies are Wilson's, those of differences and of other scores are \
bootstrapped over questions. They say nothing of other seeds of training.

**p** is how often a difference this large would come about if the two were equally good. Below 0.05 it is called \
significant. *{NOT_SIGNIFICANT.capitalize()}* means that this many questions cannot tell the two apart, not that \
they are equal."""
    return [Section("Words", listed), Section("Numbers", numbers)]

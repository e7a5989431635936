"""What a model's files can hold that loads without a word and is wrong: weights, tokens and chat templates."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from c2c_lightning.errors import UserError
from c2c_lightning.models.alignment import Aligner

LAYER = re.compile(r"\.\d+\.")
BESIDE = re.compile(r"visual|vision|audio|image|mtp|nextn|inv_freq|masked_bias")

# Letters of both cases, what a filter would escape, lines, other scripts; and more than fits a short limit.
TEXTS = ('Is "Aa & <Bb>" one\nline, or 两 {{ lines }}?', "Yes.", "Why, then? " + "Say it at length. " * 60)
TURNS = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), TEXTS)]
# A template that draws one of two things at random does the same so often in one case of 128.
TIMES = 8


def check_weights(model: PreTrainedModel, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuses a model that has weights `missing` from its files, which transformers has drawn at random; whose files
    have `unexpected` ones, which it has no place for; or whose weights are not finite.
    """
    if missing := sorted(missing):
        tied = ", or set tie_word_embeddings to true in its config.json if it is the input's" * any(
            name.startswith(("lm_head", "embed_out", "output")) for name in missing
        )
        raise UserError(
            f"model {model.name_or_path!r}: its files lack {len(missing)} of the weights that its config.json asks for "
            f"({missing[0]}), which would be random numbers: get the whole model{tied}."
        )
    # A whole tower beside the language model may be left over (vision, the next tokens), parts of its layers may not.
    if left := [name for name in sorted(unexpected) if LAYER.search(name) and not BESIDE.search(name)]:
        raise UserError(
            f"model {model.name_or_path!r}: its files hold {len(left)} weights that its config.json has no place for "
            f"({left[0]}), so it would be another model without them: set right the number of layers or what it lacks."
        )
    for name, weight in model.named_parameters():
        # The least and the largest number: NaN is both where there is one. An eighth of the time of isfinite.
        values = weight.detach()
        if values.is_floating_point() and values.numel():
            values = values.float() if values.element_size() == 1 else values
            if not torch.stack(torch.aminmax(values)).isfinite().all():
                raise UserError(
                    f"model {model.name_or_path!r}: its weight {name} holds NaN or infinite numbers: get it anew, or "
                    "an earlier checkpoint of its training."
                )


def check_tokens(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer that makes ids that its model has no embedding for, and names the first."""
    known = model.get_input_embeddings().weight.shape[0]
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= known}
    if beyond:
        first = min(beyond)
        raise UserError(
            f"model {model.name_or_path!r}: its tokenizer has tokens up to {max(beyond)}, beyond the {known} "
            f"embeddings of the model ({beyond[first]!r} is {first}): use the tokenizer that belongs to it."
        )


def check_template(tokenizer: Tokenizer, template_kwargs: dict[str, Any] | None) -> None:
    """Refuses a chat template, a program of whoever made the model, unless it ends and says each message once in order.

    It may refuse conversations of several turns, but not a single question.

    Raises:
        ValueError: it does not, and how.
    """
    aligner = Aligner(tokenizer, [], template_kwargs=template_kwargs)
    for messages in (TURNS[:1], TURNS):
        try:
            texts = {aligner.render(tokenizer, messages) for _ in range(TIMES)}
        except UserError:
            if len(messages) > 1:
                continue
            raise
        if len(texts) > 1:
            raise ValueError("its chat template renders the same conversation differently every time")
        aligner.prompt(messages)

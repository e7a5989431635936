"""transformers' `generate` from a filled cache, and which of its settings hold there.

A model's folder has settings of its own (generation_config.json, and config.json of older models). Some cannot hold
on a filled cache: without a cache the whole prompt would be read again behind what is fused, and assisted decoding
begins with an empty one. Others would make greedy decoding something else. Every field of `GenerationConfig` is in
one of the three tables here, and a test fails when transformers has another.
"""

from __future__ import annotations

from copy import copy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from c2c_lightning.errors import UserError
from c2c_lightning.models.rendering import rendered

# What is set whatever the model's folder says, and refused if the caller asks for anything else. Assisted decoding
# starts from an empty cache, and token healing takes the prompt's last token back. The code of the last ones is no
# longer in transformers: it would be fetched from the hub and run.
ONLY_ON_A_FILLED_CACHE: dict[str, Any] = {
    "use_cache": True,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    **dict.fromkeys(
        """
        cache_implementation cache_config max_cache_len prefill_chunk_size
        use_mtp prompt_lookup_num_tokens assistant_early_exit is_assistant token_healing
        penalty_alpha dola_layers constraints force_words_ids low_memory
        """.split()  # noqa: SIM905
    ),
}

# Decoding in which the likeliest token is the next one, whatever the model's folder says.
GREEDY: dict[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "min_length": 0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    **dict.fromkeys(
        """
        do_sample remove_invalid_values
        output_attentions output_hidden_states output_scores output_logits return_dict_in_generate
        """.split(),  # noqa: SIM905
        False,
    ),
    **dict.fromkeys(
        """
        min_new_tokens max_time stop_strings exponential_decay_length_penalty bad_words_ids sequence_bias
        suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id guidance_scale watermarking_config
        """.split()  # noqa: SIM905
    ),
}

# Of sampling, beams and assistants; of static caches and continuous batching, neither of which is used; what keeps the
# order of tokens; what the caller or `generate` gives.
HARMLESS = frozenset(
    """
    temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff early_stopping length_penalty
    num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold max_matching_ngram_size
    assistant_lookbehind target_lookbehind assistant_ensemble_weight speculation_type
    compile_config disable_compile continuous_batching_config
    renormalize_logits
    max_length max_new_tokens pad_token_id eos_token_id bos_token_id decoder_start_token_id
    _from_model_config transformers_version
    """.split()  # noqa: SIM905
)

# What says which prompt is answered, and from where.
OURS = ("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values")
OTHER_LOOPS = ("assistant_model", "custom_generate")
ORIGIN = ("_from_model_config", "transformers_version")


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    ids_BN: Tensor,
    mask_BN: Tensor,
    cache: DynamicCache | None = None,
    positions_BN: Tensor | None = None,
    **settings: Any,
) -> Any:
    """The model's own `generate`.

    A response ends where the model's generation config says, and also at the end of turn of its chat template, which
    the config of many a base model or of one trained on does not name; `eos_token_id` sets both aside.

    Args:
        model: that responds.
        tokenizer: its tokenizer.
        ids_BN: left-padded prompts.
        mask_BN: 1 for what may be attended to.
        cache: of all prompt tokens but the last; it is used up. None to read the prompts.
        positions_BN: of the prompt tokens, where they do not simply count the mask.
        **settings: anything that `generate` takes, if it works on a filled cache; `GREEDY` for greedy decoding.

    Returns:
        What `generate` returns; sequences begin with the padded prompts.

    Raises:
        UserError: a setting does not work on a filled cache.
    """
    settings = with_fields(settings)
    for name in (*OURS, *OTHER_LOOPS, *ONLY_ON_A_FILLED_CACHE):
        asked, only = settings.get(name), ONLY_ON_A_FILLED_CACHE.get(name)
        # False asks for nothing, and so does what is set anyhow.
        if asked is not None and asked != only and (asked is not False or only is not None):
            raise UserError(f"generate cannot take {name}={asked!r:.60}: {why_not(name)}.")
    own = model.generation_config
    settings = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": end_ids(model, tokenizer),
        **settings,
        **ONLY_ON_A_FILLED_CACHE,
    }
    if settings.get("stop_strings", own.stop_strings):
        settings.setdefault("tokenizer", tokenizer)
    if positions_BN is not None:
        settings["position_ids"] = positions_BN
    if cache is not None:
        copies = max(settings.get(name, getattr(own, name)) or 1 for name in ("num_beams", "num_return_sequences"))
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        settings["past_key_values"] = cache
    # transformers fills up from the model's config first, and refuses what does not go together there, before it looks
    # at what is asked for. So the model's config has no word in what is set here.
    model.generation_config = copy(own)
    vars(model.generation_config).update({name: None for name in settings if hasattr(own, name)})
    try:
        return model.generate(input_ids=ids_BN, attention_mask=mask_BN, **settings)
    finally:
        model.generation_config = own


def with_fields(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with those of a `generation_config` in them spelt out, as far as they are not given themselves."""
    settings = dict(settings)
    config = settings.pop("generation_config", None)
    if not isinstance(config, GenerationConfig | None):
        raise UserError(f"generate was given generation_config={config!r:.60}: give a GenerationConfig.")
    fields = {} if config is None else vars(config)
    known = {name: value for name, value in fields.items() if value is not None and name not in ORIGIN}
    return {**known, **settings}


def why_not(name: str) -> str:
    if name in OURS:
        return "the conversation says what is read, and the fused cache from where to go on"
    if name in (*OTHER_LOOPS, "use_mtp", "prompt_lookup_num_tokens", "assistant_early_exit", "is_assistant"):
        return "assisted and custom decoding do not start from a fused cache"
    return "responses are decoded from the fused cache, token by token; leave it out"


def end_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> list[int]:
    """Token ids at which a response ends: those of the model's generation config, and the template's end of turn."""
    named = model.generation_config.eos_token_id
    named = [] if named is None else named if isinstance(named, list) else [named]
    return list(dict.fromkeys([*named, end_of_turn(tokenizer)]))


@lru_cache(maxsize=64)
def end_of_turn(tokenizer: Tokenizer) -> int:
    """The first special token behind an assistant's message, or else the tokenizer's eos_token."""
    mark = "\ue000"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
    try:
        _, found, tail = rendered(tokenizer, turns).rpartition(mark)
    except Exception:  # whatever a template raises; one that refuses every conversation is told of elsewhere
        return tokenizer.eos_token_id
    ids = tokenizer(tail, add_special_tokens=False).input_ids if found and tail else []
    special = set(tokenizer.all_special_ids)
    return next((token for token in ids if token in special), tokenizer.eos_token_id)

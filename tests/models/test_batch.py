"""Padding of aligned prompts, and the control that exchanges questions."""

from __future__ import annotations

import numpy as np
import torch

from c2c_lightning.models import AlignedPrompt, Aligner, collate, exchange_questions
from c2c_lightning.models.alignment import UNALIGNED
from tests.models import tiny


def prompt(receiver: list[int], sharer: list[int], positions: list[int]) -> AlignedPrompt:
    return AlignedPrompt(receiver, [sharer], [np.array(positions)], "")


SHORT = prompt([11, 12], [51, 52, 53, 54], [2])
LONG = prompt([21, 22, 23, 24], [61, 62], [UNALIGNED, 0, 1])


def test_prompts_are_padded_on_the_left_and_responses_on_the_right():
    batch = collate([SHORT, LONG], [[1, 2, 3], [4]], pad_ids=[0, 9])
    assert batch.prompt_ids.tolist() == [[0, 0, 11, 12], [21, 22, 23, 24]]
    assert batch.prompt_mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert batch.response_ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch.response_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.sharers[0].ids.tolist() == [[51, 52, 53, 54], [9, 9, 61, 62]]
    assert batch.sharers[0].mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert (len(batch), batch.num_supervised.item()) == (2, 4)


def test_a_batch_with_nothing_to_supervise_has_one_empty_column():
    for responses in ([[], []], None):
        batch = collate([SHORT, LONG], responses, pad_ids=[0, 9])
        assert batch.response_mask.tolist() == [[0], [0]]
        assert batch.num_supervised == 0


def test_positions_are_those_of_the_padded_rows():
    batch = collate([SHORT, LONG], pad_ids=[0, 9])
    assert batch.sharers[0].positions.tolist() == [[UNALIGNED, UNALIGNED, 2], [UNALIGNED, 2, 3]]


def test_every_receiver_token_finds_the_same_sharer_token_in_a_batch_as_alone():
    aligner = Aligner(tiny.tokenizer("chatml"), [tiny.tokenizer("inst"), tiny.tokenizer("bare")])
    prompts = [aligner.prompt(messages) for messages in tiny.CONVERSATIONS]
    batch = collate(prompts, pad_ids=aligner.pad_ids)
    for row, one in enumerate(prompts):
        left = batch.prompt_ids.shape[1] - len(one.receiver_ids)
        assert batch.prompt_ids[row, left:].tolist() == one.receiver_ids
        for i, sharer in enumerate(batch.sharers):
            assert sharer.ids[row][sharer.mask[row].bool()].tolist() == one.sharer_ids[i]
            for n, alone in enumerate(one.positions[i]):
                column = sharer.positions[row, left + n]
                if alone == UNALIGNED:
                    assert column == UNALIGNED
                else:
                    assert sharer.ids[row, column] == one.sharer_ids[i][alone]
                    assert sharer.mask[row, column] == 1


def test_exchanged_questions_are_the_next_rows_and_matched_from_the_end():
    third = prompt([31, 32, 33], [71, 72, 73], [0, 2])
    batch = collate([SHORT, LONG, third], [[1], [2], [3]], pad_ids=[0, 9])
    other = tiny.next_questions(batch)
    assert torch.equal(other.prompt_ids, batch.prompt_ids)
    assert torch.equal(other.response_ids, batch.response_ids)
    sharer = other.sharers[0]
    assert sharer.ids.tolist() == [[9, 9, 61, 62], [9, 71, 72, 73], [51, 52, 53, 54]]
    assert sharer.mask.tolist() == [[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]
    # LONG reads third's 2 from the end, and third SHORT's 1; nothing where nothing stood opposite before.
    assert sharer.positions[0].tolist() == [UNALIGNED, UNALIGNED, 3]
    assert sharer.positions[1].tolist() == [UNALIGNED, 1, 3]
    assert sharer.positions[2].tolist() == [UNALIGNED, 2, 2]


def test_exchanging_does_not_touch_the_batch_and_comes_back_after_a_full_round():
    batch = collate([SHORT, LONG], pad_ids=[0, 9])
    before = batch.sharers[0].positions.clone()
    twice = tiny.next_questions(tiny.next_questions(batch))
    assert torch.equal(batch.sharers[0].positions, before)
    assert torch.equal(twice.sharers[0].ids, batch.sharers[0].ids)


def test_the_question_to_exchange_for_may_come_from_another_batch():
    third = prompt([31, 32, 33], [71, 72, 73], [0, 2])
    for mine, theirs in ((SHORT, LONG), (LONG, SHORT), (third, third)):
        together = tiny.next_questions(collate([mine, theirs], pad_ids=[0, 9])).sharers[0]
        apart = exchange_questions(collate([mine], pad_ids=[0, 9]), collate([theirs], pad_ids=[0, 9])).sharers[0]
        fused = len(mine.receiver_ids) - 1
        read = [[s.ids[0][n] if n != UNALIGNED else None for n in s.positions[0, -fused:]] for s in (together, apart)]
        assert read[0] == read[1]


def test_a_copy_on_another_device_has_all_tensors_there_and_leaves_the_first_as_it_is():
    batch = tiny.communicator("qwen3", "qwen2").models.collate(tiny.CONVERSATIONS)
    moved = batch.to("meta")
    for part, twin in ((batch, moved), (batch.sharers[0], moved.sharers[0])):
        tensors = {name: value for name, value in vars(part).items() if isinstance(value, torch.Tensor)}
        assert {value.device.type for value in tensors.values()} == {"cpu"}
        assert all(getattr(twin, name).device.type == "meta" for name in tensors)
    assert batch.sharers[0].aligned.tolist() == (batch.sharers[0].positions >= 0).flatten().nonzero()[:, 0].tolist()

"""The order of batches: everything once, the same for any number of ranks and workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from some_data import SHARED, examples, word_problems, write_jsonl
from torch.utils.data import DataLoader

from c2c_lightning.data import InstructionData
from c2c_lightning.data.batch_maker import BatchMaker
from c2c_lightning.data.loader import BUCKET_BATCHES, BatchStream, arrange
from c2c_lightning.data.source import Source
from c2c_lightning.data.stored import StoredExamples
from c2c_lightning.models import Batch

NUM_EXAMPLES, GLOBAL_BATCH, BUFFER = 43, 6, 12
ways = pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])


def read_all():
    yield from examples(NUM_EXAMPLES)


@pytest.fixture
def epoch(aligner):
    """Batches of an epoch as one rank gets them."""

    def read(streaming=False, rank=0, world_size=1, num_workers=0, seed=1, number=0, start=0) -> list[Batch]:
        make_batch = BatchMaker(aligner, max_length=2048, exact_answers=True)
        data = read_all if streaming else examples(NUM_EXAMPLES)
        stream = BatchStream(
            data, make_batch, GLOBAL_BATCH, seed, BUFFER, rank=rank, world_size=world_size, epoch=number, start=start
        )
        return list(DataLoader(stream, batch_size=None, num_workers=num_workers))

    return read


def answers(batches: list[Batch]) -> list[list[str]]:
    return [[answer for answer in batch.references if answer] for batch in batches]


def flat(batches: list[list[str]]) -> list[str]:
    return [answer for batch in batches for answer in batch]


EVERYTHING = sorted(example.response for example in examples(NUM_EXAMPLES))


@ways
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (3, 0), (2, 2)])
def test_every_example_is_read_once_over_all_ranks_and_workers(epoch, streaming, world_size, num_workers):
    ranks = [epoch(streaming, rank, world_size, num_workers) for rank in range(world_size)]
    assert sorted(answer for rank in ranks for answer in flat(answers(rank))) == EVERYTHING
    assert len({len(rank) for rank in ranks}) == 1
    # Together the ranks have the batches that one rank would have, whatever the number of workers.
    together = [sorted(flat(parts)) for parts in zip(*map(answers, ranks))]
    assert together == [sorted(batch) for batch in answers(epoch(streaming))]
    assert [batch.index for batch in ranks[0]] == list(range(len(ranks[0])))


@ways
def test_a_rank_that_gets_nothing_gets_a_batch_with_nothing_to_learn(epoch, streaming):
    # 43 examples are 7 batches of 6 and one more example, which only the first of 3 ranks can have.
    ranks = [epoch(streaming, rank, world_size=3) for rank in range(3)]
    alone = [i for i, parts in enumerate(zip(*map(answers, ranks))) if sum(map(len, parts)) == 1]
    (index,) = alone
    assert [int(rank[index].num_supervised) > 0 for rank in ranks] == [True, False, False]
    assert all(len(rank[index]) == 1 for rank in ranks)


@ways
def test_epochs_and_seeds_differ_in_order_and_equal_ones_do_not(epoch, streaming):
    first = answers(epoch(streaming))
    assert answers(epoch(streaming)) == first
    for other in (epoch(streaming, number=1), epoch(streaming, seed=2)):
        assert answers(other) != first
        assert sorted(flat(answers(other))) == EVERYTHING


def test_without_a_seed_examples_keep_their_own_order(epoch):
    assert flat(answers(epoch(seed=None))) == [example.response for example in examples(NUM_EXAMPLES)]


@ways
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_that_is_begun_in_the_middle_goes_on_with_the_same_batches(epoch, streaming, num_workers):
    whole, rest = epoch(streaming), epoch(streaming, num_workers=num_workers, start=3)
    assert answers(rest) == answers(whole)[3:]
    assert [batch.index for batch in rest] == list(range(3, len(whole)))


def test_batches_are_whole_but_the_last_of_a_bucket():
    lengths = np.random.default_rng(0).integers(1, 100, (1003, 2))
    batches = list(arrange(lengths, 2, np.random.default_rng(1)))
    assert sorted(np.concatenate(batches)) == list(range(1003))
    assert sorted(map(len, batches))[:2] == [1, 2]
    first_bucket = np.concatenate(batches[:BUCKET_BATCHES])
    assert len(first_bucket) == 2 * BUCKET_BATCHES
    assert first_bucket.max() > 900, "buckets are drawn from the whole"


def test_the_order_of_batches_is_not_that_of_their_lengths():
    lengths = np.random.default_rng(0).integers(1, 100, (800, 2))
    totals = [lengths[batch].sum() for batch in arrange(lengths, 8, np.random.default_rng(1))]
    assert abs(np.corrcoef(totals, np.arange(len(totals)))[0, 1]) < 0.3


def test_batches_are_alike_in_prompts_and_in_responses():
    lengths = np.random.default_rng(0).integers(50, 500, (3200, 2))
    batches = [lengths[batch] for batch in arrange(lengths, 8, np.random.default_rng(1))]
    padded = sum(len(batch) * batch.max(axis=0) for batch in batches)
    assert (1 - lengths.sum(axis=0) / padded).max() < 0.15


def test_at_most_a_tenth_of_the_tokens_of_word_problems_are_padding(aligner, tmp_path):
    file = write_jsonl(tmp_path / "problems.jsonl", word_problems("train", 2400))
    data = InstructionData(file, val_fraction=0, batch_size=8, seed=1, aligner=aligner)
    real, padded = 0, 0
    for batch in data.train_dataloader():
        masks = torch.cat([batch.prompt_mask, batch.response_mask], dim=1)
        real, padded = real + int(masks.sum()), padded + masks.numel()
    assert 1 - real / padded <= 0.1


def test_published_problems_are_read_whole():
    files = [SHARED / f"gsm8k_{split}.jsonl" for split in ("train", "test")]
    if not all(file.exists() for file in files):
        pytest.skip(f"{SHARED} does not hold GSM8K")
    assert [len(StoredExamples.of(Source(str(file)))) for file in files] == [7473, 1319]

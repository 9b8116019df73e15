"""The order of the pictures, by properties that hold for every dataset, and written out once."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atelier.training.random_streams import generator
from lora_atelier.training.runs.batches import BatchPlan, Draw


@st.composite
def plans(draw) -> BatchPlan:
    """Up to 14 items in up to 4 buckets; some are never seen, but not all."""
    repeats = draw(st.lists(st.integers(0, 4), min_size=1, max_size=14).filter(any))
    bucket = st.sampled_from([(512, 512), (448, 576), (576, 448), (1024, 256)])
    buckets = draw(st.lists(bucket, min_size=len(repeats), max_size=len(repeats)))
    return BatchPlan(tuple(repeats), tuple(buckets), draw(st.integers(1, 6)), draw(seeds))


seeds = st.integers(0, 2**64 - 1)
epochs = st.integers(0, 5)


def _epoch(plan: BatchPlan, epoch: int) -> list[list[Draw]]:
    first = epoch * plan.batches_per_epoch
    return [plan.batch(first + i) for i in range(plan.batches_per_epoch)]


def _draws(plan: BatchPlan, epoch: int) -> list[Draw]:
    return [draw for batch in _epoch(plan, epoch) for draw in batch]


def _one_bucket(count: int, size: int = 4, seed: int = 0) -> BatchPlan:
    return BatchPlan((1,) * count, ("square",) * count, size, seed)


def _written_out(plan: BatchPlan, epoch: int) -> list[list[int]]:
    """Turn by turn: shuffle those still due, cut each bucket into batches, and sort these by the
    place of their first item in the shuffle."""
    order = []
    for turn in range(max(plan.num_repeats)):
        due = [i for i in range(len(plan.num_repeats)) if plan.num_repeats[i] >= turn + 1]
        rng = generator(plan.seed, "order", epoch, turn)
        shuffled = [due[i] for i in torch.randperm(len(due), generator=rng)]
        batches = []
        for bucket in set(plan.buckets):
            waiting = [item for item in shuffled if plan.buckets[item] == bucket]
            while waiting:
                batches.append(waiting[: plan.train_batch_size])
                del waiting[: plan.train_batch_size]
        order += sorted(batches, key=lambda batch: shuffled.index(batch[0]))
    return order


@given(plans(), epochs)
def test_a_batch_holds_one_bucket_and_no_more_than_its_size(plan, epoch):
    for batch in _epoch(plan, epoch):
        assert len({plan.buckets[draw.item] for draw in batch}) == 1
        assert len(batch) <= plan.train_batch_size


@given(plans(), epochs)
def test_every_item_is_seen_exactly_num_repeats_times_an_epoch(plan, epoch):
    seen = Counter(draw.item for draw in _draws(plan, epoch))
    assert seen == Counter(dict(enumerate(plan.num_repeats)))


@given(plans(), epochs)
def test_none_is_seen_twice_before_the_others_that_are_due_once(plan, epoch):
    seen: Counter[int] = Counter()
    for draw in _draws(plan, epoch):
        for item, repeats in enumerate(plan.num_repeats):
            assert seen[item] >= min(seen[draw.item], repeats)
        seen[draw.item] += 1


@given(plans(), epochs)
def test_no_batch_holds_an_item_twice(plan, epoch):
    for batch in _epoch(plan, epoch):
        assert len({draw.item for draw in batch}) == len(batch)


@given(plans(), epochs)
def test_a_bucket_leaves_one_short_batch_a_turn_at_most(plan, epoch):
    """So many batches: of each bucket and turn the items still due, over the size, rounded up."""
    expected = 0
    for turn in range(max(plan.num_repeats)):
        due = Counter(
            bucket
            for bucket, repeats in zip(plan.buckets, plan.num_repeats, strict=True)
            if repeats > turn
        )
        expected += sum(-(-count // plan.train_batch_size) for count in due.values())
    assert plan.batches_per_epoch == expected
    assert sum(map(len, _epoch(plan, epoch))) == sum(plan.num_repeats)


@given(plans(), epochs)
def test_positions_count_the_pictures_of_the_epoch(plan, epoch):
    draws = _draws(plan, epoch)
    assert [draw.position for draw in draws] == list(range(sum(plan.num_repeats)))
    assert {draw.epoch for draw in draws} == {epoch}


@given(plans(), epochs)
def test_the_order_equals_one_written_out(plan, epoch):
    found = [[draw.item for draw in batch] for batch in _epoch(plan, epoch)]
    assert found == _written_out(plan, epoch)


def test_the_order_of_one_plan_is_known():
    """Items 0 to 3 are wide, 4 to 6 tall; 1 and 5 are seen twice, 3 never. The shuffles of seed 7
    are 2 6 4 5 1 0 and 5 0 6 1 2 4; another order would break every resume."""
    plan = BatchPlan((1, 2, 1, 0, 1, 2, 1), ("wide",) * 4 + ("tall",) * 3, 2, seed=7)
    first, second = ([[d.item for d in batch] for batch in _epoch(plan, e)] for e in (0, 1))
    assert first == [[2, 1], [6, 4], [5], [0], [1], [5]]
    assert second == [[5, 6], [0, 1], [2], [4], [1], [5]]


@given(plans(), st.integers(1, 6), epochs)
def test_in_one_bucket_the_batch_size_changes_neither_order_nor_position(plan, size, epoch):
    """So accumulating small batches equals a large one."""
    one = replace(plan, buckets=("square",) * len(plan.buckets))
    assert _draws(one, epoch) == _draws(replace(one, train_batch_size=size), epoch)


@given(plans(), st.lists(st.integers(0, 60), max_size=8))
@settings(max_examples=50)
def test_the_order_does_not_depend_on_what_was_asked_before(plan, asked):
    """Resuming anywhere, or asking back and forth over more epochs than are kept."""
    in_turn = [plan.batch(i) for i in range(61)]
    afresh = BatchPlan(plan.num_repeats, plan.buckets, plan.train_batch_size, plan.seed)
    assert [afresh.batch(i) for i in asked] == [in_turn[i] for i in asked]


@given(plans(), st.integers(0, 100))
def test_micro_batches_go_on_from_one_epoch_to_the_next(plan, micro_step):
    epoch, index = divmod(micro_step, plan.batches_per_epoch)
    assert plan.batch(micro_step) == _epoch(plan, epoch)[index]


def test_another_epoch_and_another_seed_give_another_order():
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(draw.item for draw in _draws(_one_bucket(30, seed=seed), epoch))

    assert len({order(s, e) for s, e in [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]}) == 5


def test_the_turns_of_an_epoch_differ_in_order():
    draws = _draws(BatchPlan((2,) * 30, ("square",) * 30, 4, 0), 0)
    assert [d.item for d in draws[:30]] != [d.item for d in draws[30:]]


def test_batches_of_different_buckets_are_mixed():
    """Not one bucket after another, which would train on one shape for a long time."""
    plan = BatchPlan((1,) * 80, ("wide",) * 40 + ("tall",) * 40, 2, 0)
    shapes = [plan.buckets[batch[0].item] for batch in _epoch(plan, 0)]
    assert sum(one != two for one, two in pairwise(shapes)) > 10


def test_pictures_lead_equally_often_over_many_epochs():
    """A biased shuffle would show: 1000 epochs of 5 pictures, 200 expected, deviation 12.6."""
    plan = _one_bucket(5, size=5)
    leaders = Counter(plan.batch(epoch)[0].item for epoch in range(1000))
    assert all(abs(leaders[item] - 200) < 60 for item in range(5))


def test_partners_in_a_batch_change_from_epoch_to_epoch():
    """Of 6 pictures in pairs each meets each other one 120 times in 600 epochs, deviation 10."""
    plan = _one_bucket(6, size=2)
    met = Counter(
        frozenset(draw.item for draw in batch)
        for epoch in range(600)
        for batch in _epoch(plan, epoch)
    )
    assert len(met) == 15
    assert all(abs(count - 120) < 50 for count in met.values())


def test_one_picture_with_many_repeats_does_not_slow_down_many_with_few():
    """Each turn looks at what is still due alone: 10,000 × 20,000 looks would take minutes."""
    plan = BatchPlan((10_000, *(1,) * 20_000), ("square",) * 20_001, 4, 0)
    begin = time.process_time()
    assert plan.batches_per_epoch == 5001 + 9999
    assert time.process_time() - begin < 30


def test_a_large_plan_is_ordered_fast_and_asked_for_free():
    count = 100_000
    plan = BatchPlan((1,) * count, tuple((512, i % 40) for i in range(count)), 4, 0)
    begin = time.process_time()
    batches = plan.batches_per_epoch
    ordered = time.process_time()
    for micro_step in range(1000):
        plan.batch(micro_step)
    asked = time.process_time()
    assert batches >= count / 4
    assert ordered - begin < 20
    assert asked - ordered < 2  # far from enough for shuffling, or hashing 100,000 items, again


def test_going_back_and_forth_over_the_end_of_an_epoch_shuffles_no_more_than_twice():
    """An accumulated step may reach into the next epoch."""
    plan = BatchPlan((1,) * 20_000, ("square",) * 20_000, 4, 0)
    last = plan.batches_per_epoch - 1
    plan.batch(last + 1)
    begin = time.process_time()
    for _ in range(300):
        plan.batch(last), plan.batch(last + 1)
    assert time.process_time() - begin < 5

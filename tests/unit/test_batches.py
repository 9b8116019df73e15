"""The order of the pictures, by properties that hold for every dataset."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atelier.training.batches import BatchPlan, Draw

repeats = st.lists(st.integers(1, 5), min_size=1, max_size=12).map(tuple)
sizes = st.integers(1, 9)
seeds = st.integers(0, 2**64 - 1)
epochs = st.integers(0, 5)


def _epoch(plan: BatchPlan, epoch: int) -> list[Draw]:
    first = epoch * plan.batches_per_epoch
    return [d for i in range(plan.batches_per_epoch) for d in plan.batch(first + i)]


@given(repeats, sizes, seeds, epochs)
def test_every_picture_is_seen_exactly_num_repeats_times_an_epoch(repeats, size, seed, epoch):
    seen = Counter(draw.image for draw in _epoch(BatchPlan(repeats, size, seed), epoch))
    assert seen == dict(enumerate(repeats))


@given(repeats, sizes, seeds, epochs)
def test_none_is_seen_twice_before_the_others_that_are_due_once(repeats, size, seed, epoch):
    seen: Counter[int] = Counter()
    for draw in _epoch(BatchPlan(repeats, size, seed), epoch):
        waiting = [i for i in range(len(repeats)) if seen[i] < min(seen[draw.image], repeats[i])]
        assert not waiting
        seen[draw.image] += 1


@given(repeats, sizes, seeds, st.integers(0, 100))
def test_a_batch_is_full_unless_it_is_the_last_of_its_epoch_and_spans_no_two(
    repeats, size, seed, micro_step
):
    total = sum(repeats)
    count = total // size + (total % size > 0)
    last = micro_step % count == count - 1
    batch = BatchPlan(repeats, size, seed).batch(micro_step)
    assert {draw.epoch for draw in batch} == {micro_step // count}
    assert len(batch) == ((total % size or size) if last else size)


@given(repeats, sizes, sizes, seeds, epochs)
def test_the_batch_size_changes_neither_order_nor_position(repeats, size, other, seed, epoch):
    one, two = BatchPlan(repeats, size, seed), BatchPlan(repeats, other, seed)
    assert _epoch(one, epoch) == _epoch(two, epoch)


@given(repeats, sizes, seeds, epochs)
def test_positions_count_the_pictures_of_the_epoch(repeats, size, seed, epoch):
    draws = _epoch(BatchPlan(repeats, size, seed), epoch)
    assert [draw.position for draw in draws] == list(range(sum(repeats)))


@given(repeats, sizes, seeds, st.permutations(range(6)))
@settings(max_examples=30)
def test_the_order_does_not_depend_on_what_was_asked_before(repeats, size, seed, asked):
    in_turn = BatchPlan(repeats, size, seed)
    expected = {epoch: _epoch(in_turn, epoch) for epoch in range(6)}
    assert {epoch: _epoch(BatchPlan(repeats, size, seed), epoch) for epoch in asked} == expected


def test_another_epoch_and_another_seed_give_another_order():
    def order(seed: int, epoch: int) -> list[int]:
        return [draw.image for draw in _epoch(BatchPlan((1,) * 30, 4, seed), epoch)]

    assert len({tuple(order(s, e)) for s, e in [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]}) == 5


def test_pictures_lead_equally_often_over_many_epochs():
    """A biased shuffle would show: 1000 epochs of 5 pictures, 200 expected, deviation 12.6."""
    plan = BatchPlan((1,) * 5, 5, 0)
    leaders = Counter(plan.batch(epoch)[0].image for epoch in range(1000))
    assert all(abs(leaders[image] - 200) < 60 for image in range(5))

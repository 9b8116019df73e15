"""Random numbers as a function of seed, purpose and position."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from lora_atelier.training.random_streams import generator, global_stream, global_streams


def _numbers(seed: int, *key: object) -> Tensor:
    return torch.rand(8, generator=generator(seed, *key))


def test_the_same_key_gives_the_same_numbers() -> None:
    assert torch.equal(_numbers(3, "noise", 2, 7), _numbers(3, "noise", 2, 7))


@pytest.mark.parametrize(
    "other", [(4, "noise", 2, 7), (3, "order", 2, 7), (3, "noise", 3, 7), (3, "noise", 2, 8)]
)
def test_another_seed_purpose_or_position_gives_other_numbers(other: tuple) -> None:
    assert not torch.equal(_numbers(3, "noise", 2, 7), _numbers(*other))


def test_digits_do_not_run_together_from_one_part_of_a_key_to_the_next() -> None:
    assert not torch.equal(_numbers(3, "noise", 1, 23), _numbers(3, "noise", 12, 3))


def test_what_was_drawn_elsewhere_changes_nothing() -> None:
    torch.manual_seed(1)
    first = _numbers(3, "noise", 0, 0)
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(first, _numbers(3, "noise", 0, 0))


def test_the_global_stream_is_left_as_it_was() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    _numbers(3, "noise", 0, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_the_stream_is_seeded_by_the_hash_of_its_key() -> None:
    """Written out, so that a change of the scheme, which would break every resume, is noticed."""
    digest = hashlib.blake2b(b"3/noise/2/7", digest_size=8).digest()
    seed = sum(byte << (8 * place) for place, byte in enumerate(digest)) // 2
    expected = torch.randint(2**31, (1,), generator=torch.Generator().manual_seed(seed))
    assert generator(3, "noise", 2, 7).initial_seed() == seed
    assert torch.equal(torch.randint(2**31, (1,), generator=generator(3, "noise", 2, 7)), expected)


def test_the_largest_seed_of_the_widget_works() -> None:
    assert not torch.equal(_numbers(2**64 - 1, "noise"), _numbers(2**64 - 2, "noise"))


CPU = torch.device("cpu")


def _drawn(*key: object) -> Tensor:
    with global_stream(CPU, 3, *key):
        return torch.rand(8)


def test_the_global_stream_is_lent_by_its_key_and_put_back() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = _drawn("optimizer", 7)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    assert torch.equal(first, _drawn("optimizer", 7))
    assert torch.equal(first, _numbers(3, "optimizer", 7))  # the numbers of the key's generator
    assert not torch.equal(first, _drawn("optimizer", 8))


def test_the_global_stream_comes_back_after_an_error_too() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), global_stream(CPU, 3, "x"):
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("device", "count"), [("cpu", 1), ("meta", 1), ("cuda:1", 2), ("xpu", 2), ("mps", 2)]
)
def test_a_stream_is_known_of_every_device_that_has_one(device: str, count: int) -> None:
    """What is drawn there would depend on what was drawn before, and no resumed run be exact."""
    assert len(global_streams(torch.device(device))) == count

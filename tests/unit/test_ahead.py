"""Threads that work ahead: everything arrives, memory is bounded, nothing outlives its use."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from lora_atelier.training.ahead import made_ahead


def parts(job: int) -> Iterator[tuple[int, int]]:
    for i in range(3):
        yield job, i


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("atelier-ahead")]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("most", [1, 2, 7])
def test_everything_arrives_once(threads: int, most: int) -> None:
    found = list(made_ahead(range(20), parts, threads, most))
    assert sorted(found) == [(job, i) for job in range(20) for i in range(3)]
    assert not workers()


def test_no_jobs_give_nothing() -> None:
    assert list(made_ahead([], parts, 4, 4)) == []


def test_one_thread_keeps_the_order() -> None:
    assert list(made_ahead(range(5), parts, 1, 4)) == [(j, i) for j in range(5) for i in range(3)]


def test_it_runs_ahead_but_no_further_than_allowed() -> None:
    begun: list[int] = []

    def make(job: int) -> Iterator[int]:
        begun.append(job)
        yield job

    with closing(made_ahead(range(50), make, 2, 5)) as results:
        next(results)
        deadline = time.monotonic() + 10
        while len(begun) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)  # long enough for a sixth to be begun, were it allowed
        assert len(begun) == 5
        assert len(list(results)) == 49


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)

    def make(job: int) -> Iterator[int]:
        together.wait()
        yield job

    assert sorted(made_ahead(range(6), make, 3, 6)) == list(range(6))


def test_an_error_arrives_where_the_results_are_used() -> None:
    def make(job: int) -> Iterator[int]:
        if job == 3:
            raise KeyError("the third")
        yield job

    seen = []
    with pytest.raises(KeyError, match="the third"):
        for result in made_ahead(range(1000), make, 1, 2):
            seen.append(result)
    assert seen == [0, 1, 2]
    assert not workers()


def test_leaving_early_ends_the_threads_and_the_work() -> None:
    begun: list[int] = []

    def make(job: int) -> Iterator[int]:
        begun.append(job)
        yield job

    with pytest.raises(InterruptedError):
        with closing(made_ahead(range(1000), make, 3, 4)) as results:
            for _ in results:
                raise InterruptedError
    assert not workers()
    assert len(begun) < 20

"""Work that threads do ahead of its use, a bounded way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

J = TypeVar("J")
T = TypeVar("T")

_END = object()


class _Failure(NamedTuple):
    error: BaseException


def made_ahead(
    jobs: Iterable[J], make: Callable[[J], Iterator[T]], threads: int, most: int
) -> Iterator[T]:
    """Everything that ``make`` yields for each of the jobs, in the order in which it gets ready.

    Close the generator (``contextlib.closing``) when it is left early: its threads end with what
    they are at.

    Args:
        threads: how many jobs are worked on at a time.
        most: how many results may be there, the one in use and those being made included.

    Raises:
        whatever ``make`` raises.
    """
    todo: SimpleQueue[J] = SimpleQueue()
    for job in jobs:
        todo.put(job)
    made: SimpleQueue = SimpleQueue()
    room = threading.Semaphore(most)
    stop = threading.Event()

    def work() -> None:
        try:
            while not stop.is_set() and (job := _next(todo)) is not _END:
                _work_on(make(job), made, room, stop)
            made.put(_END)
        except BaseException as error:  # it is raised where the results are used
            made.put(_Failure(error))

    workers = [
        threading.Thread(target=work, name=f"atelier-ahead-{i}", daemon=True)
        for i in range(min(threads, todo.qsize()))
    ]
    for worker in workers:
        worker.start()
    try:
        running = len(workers)
        while running > 0:
            result = made.get()
            if result is _END:
                running -= 1
            elif isinstance(result, _Failure):
                raise result.error
            else:
                yield result
                room.release()
    finally:
        stop.set()
        room.release(threads)  # they may be waiting for it
        for worker in workers:
            worker.join()


def _next(todo: SimpleQueue) -> object:
    try:
        return todo.get_nowait()
    except Empty:
        return _END


def _work_on(
    results: Iterator[T], made: SimpleQueue, room: threading.Semaphore, stop: threading.Event
) -> None:
    while True:
        room.acquire()
        if stop.is_set():
            return
        result = next(results, _END)
        if result is _END:
            room.release()
            return
        made.put(result)
        del result  # the one who uses it decides how long it lives

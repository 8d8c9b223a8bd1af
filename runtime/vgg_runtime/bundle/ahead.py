"""Work that is begun before it is needed."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(make: Callable[[T], R], items: Iterable[T]) -> Iterator[Callable[[], R]]:
    """For each item a function that gives ``make(item)``, or raises what that raised. A thread makes the next
    one while the caller is busy with this one: pictures are decoded while the model runs."""
    # imported here: what a model's process loads counts as the model's memory, and few need this
    from concurrent.futures import Future, ThreadPoolExecutor

    with ThreadPoolExecutor(1, "ahead") as pool:
        waiting: Future[R] | None = None
        for item in items:
            following = pool.submit(make, item)
            if waiting:
                yield waiting.result
            waiting = following
        if waiting:
            yield waiting.result

"""Matrices side by side: one core works on one matrix, whose blocks stay in its cache."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of each item, in order, in as many threads as there are cores.

    An error of one item is raised when those that were begun are done; the others are not begun.
    """
    cores = len(os.sched_getaffinity(0))
    if cores == 1 or len(items) == 1:
        return [function(item) for item in items]
    threads = torch.get_num_threads()
    try:
        # In a worker torch is to use that worker alone: threads that wait for each other after every block cost more than they do.
        with ThreadPoolExecutor(min(cores, len(items)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
    finally:
        torch.set_num_threads(threads)  # of threads that are still to come, which take the last number that was set

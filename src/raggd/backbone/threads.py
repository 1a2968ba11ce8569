"""Processor threads of a program in which one thread runs the model and others do the rest.

OpenMP keeps helpers for every thread that ever computed in parallel, and puts them to sleep after
each product once all helpers together are more than the cores. A model that is loaded in one thread
and run in another then decodes at little more than half the speed.
"""

from __future__ import annotations

import threading

import torch


def leave_one() -> int:
    """Leave one processor thread to this thread, and to every one that computes from now on.

    Returns:
        How many this thread had, for `claim` in the thread that shall run the model.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return before


def claim(threads: int) -> None:
    """Let this thread, and no other, compute with several processor threads.

    Args:
        threads: what `leave_one` returned.
    """
    torch.get_num_threads()  # a thread's first question sets it to the default
    torch.set_num_threads(threads)
    # the number holds for this thread and is the default of new ones: another thread sets that back
    other = threading.Thread(target=torch.set_num_threads, args=(1,))
    other.start()
    other.join()

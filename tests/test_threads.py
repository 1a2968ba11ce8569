"""One thread computes with several processor threads, all others with one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from raggd.backbone.device import claim, leave_one


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _in_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("two_threads")
def test_a_claim_holds_for_its_thread_alone() -> None:
    assert _in_new_thread() == 2
    assert leave_one() == 2
    assert (torch.get_num_threads(), _in_new_thread()) == (1, 1)
    with ThreadPoolExecutor(1) as model:
        model.submit(claim, 2).result()
        assert model.submit(torch.get_num_threads).result() == 2
        assert (torch.get_num_threads(), _in_new_thread()) == (1, 1)

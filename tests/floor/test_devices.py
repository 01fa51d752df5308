"""Threads follow the size of the work, whatever the machine offers."""

import os

import pytest
import torch
from threadpoolctl import threadpool_info

from cmcr.devices import WORTH_A_THREAD, cores, find_device, threads_for
from cmcr.errors import UsageError


def test_small_products_take_one_thread_in_every_library() -> None:
    before = torch.get_num_threads()
    with threads_for(256**2 * 64) as threads:
        assert threads == torch.get_num_threads() == 1
        assert {library["num_threads"] for library in threadpool_info()} == {1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("told", [1, 64])
def test_large_products_take_what_torch_was_told_but_no_more_than_there_are_cores(
    told: int, one_thread: None
) -> None:
    torch.set_num_threads(told)
    with threads_for(1 << 40) as threads:
        assert threads == min(told, cores()) <= len(os.sched_getaffinity(0))
    with threads_for(2 * WORTH_A_THREAD) as threads:
        assert threads == min(told, 2, cores())


def test_threads_are_given_back_when_the_work_fails() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads_for(0):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_only_the_devices_there_are_for_cmcr_are_listed() -> None:
    with pytest.raises(UsageError, match=r"^there is no device 'gpu'\n  fix:   --device auto, cpu"):
        find_device("gpu")

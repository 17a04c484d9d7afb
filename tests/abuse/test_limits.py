"""The limits themselves: a bound that never strikes holds nothing."""

from __future__ import annotations

import time

import numpy as np
import pytest
from tests.abuse.limits import memory, patience


def test_memory_is_that_of_the_block_whatever_was_taken_before() -> None:
    """The peak of the process's whole life used to be compared: after one large test nothing was ever too much."""
    del (earlier := [np.ones(50 << 20, np.float32)])[:]
    assert not earlier
    with pytest.raises(AssertionError, match="MB more"), memory(50):
        np.ones(20 << 20, np.float32)
    with memory(50):
        np.ones(5 << 20, np.float32)


def test_patience_ends() -> None:
    with pytest.raises(TimeoutError, match="not done after 1 s"), patience(1):
        time.sleep(10)

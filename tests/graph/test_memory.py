"""Values that live at the same time never share memory; the others do."""

from __future__ import annotations

import random

import pytest
import torch

from sparsecore.graph.memory import ALIGNMENT, HUGE_PAGE, Lifetime, new_buffer, plan_memory


def test_nothing() -> None:
    assert plan_memory([]) == ([], 0)


def test_a_chain_needs_two_buffers() -> None:
    values = [Lifetime(1000, i, i + 1) for i in range(10)]
    offsets, num_bytes = plan_memory(values)
    assert num_bytes == 2 * 1024
    assert set(offsets) == {0, 1024}


@pytest.mark.parametrize("seed", range(20))
def test_random_lifetimes(seed: int) -> None:
    rng = random.Random(seed)
    values = []
    for _ in range(60):
        first = rng.randrange(40)
        values.append(Lifetime(rng.choice([0, 1, 64, 1000, 4096]), first, first + rng.randrange(8)))
    offsets, num_bytes = plan_memory(values)
    for i, (value, offset) in enumerate(zip(values, offsets, strict=True)):
        assert offset % ALIGNMENT == 0
        assert offset + value.num_bytes <= num_bytes
        for other, start in zip(values[:i], offsets[:i], strict=True):
            together = value.first <= other.last and other.first <= value.last
            apart = offset + value.num_bytes <= start or start + other.num_bytes <= offset
            assert apart or not together
    # Greedy is close to the most that lives at once.
    most = max(sum(v.num_bytes for v in values if v.first <= step <= v.last) for step in range(50))
    assert num_bytes <= 1.5 * most + len(values) * ALIGNMENT


@pytest.mark.parametrize("num_bytes", [0, 1, 1000, HUGE_PAGE, 3 * HUGE_PAGE + 5])
def test_buffers_are_aligned_and_writable(num_bytes: int) -> None:
    buffer = new_buffer(num_bytes)
    assert buffer.shape == (num_bytes,)
    assert buffer.dtype == torch.uint8
    assert buffer.data_ptr() % ALIGNMENT == 0
    buffer.fill_(7)
    assert bool((buffer == 7).all())

"""Which CPUs add int8 products without saturating."""

from __future__ import annotations

import pytest

from sparsecore.bench.peers.vnni import is_exact_with


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(None, True), (set(), False), ({"avx2"}, False), ({"avx2", "avx_vnni"}, True), ({"avx512_vnni"}, True)],
)
def test_vnni(flags: set[str] | None, expected: bool) -> None:
    assert is_exact_with(flags) == expected

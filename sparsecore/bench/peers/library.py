"""Who competes: what a worker imports, and what pip installs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

INSTALL_PEERS = 'pip install "sparsecore[peers]"'
LOAD_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Library:
    """A library that computes what is measured.

    Attributes:
        name: In reports and after ``--peers``.
        module: What its worker imports: ``prepare(threads)`` sets the library up, ``candidates(problem)`` returns a
            dict from the name of a candidate to a function that builds it, and ours has ``fma_gflops(threads,
            seconds)`` too.
        distributions: What pip installs, all needed.
        problem: Class of the problems, ``MODULE:CLASS``; its ``load(path)`` reads one.
        install: How to get it.
        load_timeout_s: How long building all candidates may take.
    """

    name: str
    module: str
    distributions: tuple[str, ...]
    problem: str = "sparsecore.bench.kernels.problem:Problem"
    install: str = INSTALL_PEERS
    load_timeout_s: float = LOAD_TIMEOUT_S

    def versions(self) -> dict[str, str] | None:
        """Version of every distribution, None if one is missing."""
        try:
            return {name: version(name) for name in self.distributions}
        except PackageNotFoundError:
            return None

"""Time on a GPU, as a clock for ``interleave()``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class DeviceClock(Protocol):
    """Nanoseconds that a device has spent in the calls that ``timed()`` returned."""

    def __call__(self) -> int:
        """Return the time so far."""
        ...

    def timed(self, call: Callable[[], object]) -> Callable[[], object]:
        """Return a call that does the same and adds its time to the clock; ends when the device is done."""
        ...


class CudaClock:
    """Replays of CUDA graphs between two events. Before each replay the second-level cache is filled with other data.

    So a call is timed as it runs in a model that is larger than the cache, without its launches from Python.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ns = 0.0
        cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._filler = torch.empty(2 * cache_bytes, dtype=torch.uint8, device=device)

    def __call__(self) -> int:
        return round(self._ns)

    def timed(self, call: Callable[[], object]) -> Callable[[], object]:
        """Capture the call in a graph; see DeviceClock."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                call()  # what it loads and allocates at first does not belong into a graph
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()

        def replay() -> None:
            with torch.cuda.device(self._device):
                start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                self._filler.zero_()
                start.record()
                graph.replay()
                stop.record()
                stop.synchronize()
                self._ns += start.elapsed_time(stop) * 1e6

        return replay

"""Measuring: the timing core, hardware probes, workloads, and the demo with its report.

Import the submodule you need. This package imports none of them, so that ``sparsecore.tune`` can
use the timing core without pulling in the workloads.
"""

"""Libraries that compete, one process each, taking turns: what measuring single layers and whole models shares.

A ``library`` names the module that its ``worker`` imports, and the worker builds that module's ``candidate`` objects
for a problem. A ``process`` is a worker as its parent sees it, a ``team`` all of them; ``rounds`` give every candidate
one ``turn`` each. ``pytorch``, ``onnx_runtime`` and ``open_vino`` set those libraries up.
"""

"""Whole models at several shares of zeros, measured against every peer: ``sparsecore bench MODEL``.

The way through: ``pruning`` gives a model of ``bench.models`` its zeros, ``export`` writes it as ONNX, and both become
a ``problem``. ``run`` gives it to one process per library (``bench.peers``; in there ``libraries``), compares outputs
with the dense model's and lets the candidates take turns. ``compare`` says who is how fast, ``tables`` and ``plot``
show it, and ``files`` keeps it. ``fast`` is the one place that makes our fast model.
"""

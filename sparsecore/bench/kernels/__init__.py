"""Every kernel on single layers, measured against every peer: ``sparsecore kernels bench``.

The way through: ``layers`` names the layers and ``weights`` makes a ``problem`` of each. ``run`` gives it to one
process per library (``bench.peers``; in there ``libraries``), compares outputs with the ``exact`` one and lets the
candidates take turns; ``merge`` makes one report of several runs. ``compare`` draws conclusions,
``formats`` and ``int8`` those about our formats and about int8; ``tables``, ``plot`` and ``grid`` show them, and
``files`` keeps them.
"""

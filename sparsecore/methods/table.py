"""The table of methods: a row for each, read from here by the command line, the documentation and recipes."""

from __future__ import annotations

from sparsecore.methods.method import REQUIRED, Method

_HAN = "Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015"
_MOCANU = (
    "Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity inspired by "
    "network science, Nature Communications 2018; with the sizes of filters: Evci et al., Rigging the Lottery: Making "
    "All Tickets Winners, ICML 2020"
)
_ZHU_GUPTA = "Zhu & Gupta, To prune, or not to prune: exploring the efficacy of pruning, arXiv 1710.01878, 2017"
_NARANG = (
    "Narang et al., Block-Sparse Recurrent Neural Networks, arXiv 1711.02782, 2017, where a block's largest weight "
    "counts, not the mean"
)
_JACOB = (
    "Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, "
    "CVPR 2018"
)

TABLE = (
    Method(
        "magnitude",
        "pruning",
        "Zero the weights of smallest magnitude: per layer, over the whole model, or a share for each layer",
        _HAN,
        "sparsecore.prune:prune",
        inputs=("model", "masks"),
        fixed={"criterion": "magnitude"},
    ),
    Method(
        "criterion",
        "pruning",
        "Zero the weights of lowest score, by a function of one's own (name, weight) -> scores",
        "own",
        "sparsecore.prune:prune",
        inputs=("model", "masks"),
        defaults={"criterion": REQUIRED},
    ),
    Method(
        "n:m",
        "pruning",
        "Keep the N largest of every M neighbouring inputs: 2:4, 4:16, 8:16",
        "Mishra et al., Accelerating Sparse Deep Neural Networks, arXiv 2104.08378, 2021",
        "sparsecore.prune:prune",
        inputs=("model", "masks"),
        fixed={"criterion": "magnitude"},
        unused=("sparsity", "scope"),
        defaults={"pattern": "2:4"},
    ),
    Method(
        "blocks",
        "pruning",
        "Zero whole blocks of neighbouring weights, those of smallest mean magnitude",
        _NARANG,
        "sparsecore.prune:prune",
        inputs=("model", "masks"),
        fixed={"criterion": "magnitude"},
        defaults={"pattern": "4x1"},
    ),
    Method(
        "gradual",
        "pruning",
        "Raise the sparsity along a cubic curve while the model trains",
        _ZHU_GUPTA,
        "sparsecore.prune:GradualPruner",
        inputs=("model", "optimizer", "masks"),
        needs=("data", "loss", "training steps"),
    ),
    Method(
        "erdos-renyi",
        "pruning",
        "Zero the weights of smallest magnitude, each layer's share from its shape: small layers stay denser",
        _MOCANU,
        "sparsecore.prune:prune",
        inputs=("model", "masks"),
        fixed={"criterion": "magnitude", "scope": "erdos-renyi"},
    ),
    Method(
        "iterative",
        "pruning",
        "Prune a part, train what is left, prune more; thresholds from the layers' sensitivity and standard deviation",
        _HAN,
        "sparsecore.prune:IterativePruner",
        inputs=("model", "optimizer", "sensitivity", "masks"),
        needs=("data", "loss", "training steps"),
    ),
    Method(
        "pruning-sensitivity",
        "pruning",
        "Prune each layer alone, at several sparsities, and evaluate: what sparsity of each adds up to a target",
        _HAN,
        "sparsecore.prune:pruning_sensitivity",
        inputs=("model", "evaluate", "progress"),
        needs=("data", "labels"),
    ),
    Method(
        "int8-dynamic",
        "quantization",
        "int8 weights per output channel, activations scaled row by row as they come",
        _JACOB,
        "sparsecore.quantize:quantize",
        inputs=("model", "batches"),
        fixed={"activations": "dynamic"},
        unused=("observer",),
    ),
    Method(
        "int8-static",
        "quantization",
        "int8 weights per output channel, activations in ranges from calibration: min-max, percentile or least error",
        _JACOB,
        "sparsecore.quantize:quantize",
        inputs=("model", "batches"),
        needs=("data",),
        fixed={"activations": "static"},
    ),
)

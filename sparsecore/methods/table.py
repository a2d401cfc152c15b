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

# What prune() takes for criteria that look at the inputs of a layer.
_CALIBRATION = ("batches", "sequential", "progress")
_DEEP_COMPRESSION = (
    "Han et al., Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman "
    "Coding, ICLR 2016"
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
        unused=_CALIBRATION,
    ),
    Method(
        "criterion",
        "pruning",
        "Zero the weights of lowest score, by a function of one's own (name, weight) -> scores",
        "own",
        "sparsecore.prune:prune",
        inputs=("model", "masks"),
        unused=_CALIBRATION,
        defaults={"criterion": REQUIRED},
    ),
    Method(
        "taylor",
        "pruning",
        "Zero the weights whose loss would change least, by weight times gradient, at once or added up over batches",
        "Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017",
        "sparsecore.prune:prune",
        inputs=("model", "masks"),
        needs=("data", "loss"),
        fixed={"criterion": "taylor"},
        unused=_CALIBRATION,
    ),
    Method(
        "wanda",
        "pruning",
        "Zero the weights of smallest magnitude times norm of their input, row by row; no training",
        "Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024",
        "sparsecore.prune:prune",
        inputs=("model", "masks", "batches"),
        needs=("data",),
        parts={"criterion": "sparsecore.prune:Wanda"},
    ),
    Method(
        "sparsegpt",
        "pruning",
        "Zero weights column after column and let those that stay make up for it, by second derivatives; no training",
        "Frantar & Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, ICML 2023",
        "sparsecore.prune:prune",
        inputs=("model", "masks", "batches"),
        needs=("data",),
        parts={"criterion": "sparsecore.prune:SparseGPT"},
    ),
    Method(
        "n:m",
        "pruning",
        "Keep the N largest of every M neighbouring inputs: 2:4, 4:16, 8:16",
        "Mishra et al., Accelerating Sparse Deep Neural Networks, arXiv 2104.08378, 2021",
        "sparsecore.prune:prune",
        inputs=("model", "masks"),
        fixed={"criterion": "magnitude"},
        unused=("sparsity", "scope", *_CALIBRATION),
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
        unused=_CALIBRATION,
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
        unused=_CALIBRATION,
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
    Method(
        "qat",
        "quantization",
        "Train with weights and activations rounded to 8 bits or fewer; convert_qat() then gives int8 layers",
        _JACOB,
        "sparsecore.quantize:prepare_qat",
        inputs=("model", "batches"),
        needs=("data", "loss", "training steps"),
    ),
    Method(
        "weight-sharing",
        "quantization",
        "Replace the weights of each layer by at most 2^bits values, by k-means; attach() trains these",
        _DEEP_COMPRESSION,
        "sparsecore.quantize:share_weights",
        inputs=("model", "generator"),
    ),
    Method(
        "binaryconnect",
        "quantization",
        "Train with weights of one bit, signs alone or times a scale; fold_qat() then gives plain layers",
        "Courbariaux et al., BinaryConnect: Training Deep Neural Networks with binary weights during propagations, "
        "NeurIPS 2015; scale: Rastegari et al., XNOR-Net, ECCV 2016",
        "sparsecore.quantize:prepare_binary",
        inputs=("model", "generator"),
        needs=("data", "loss", "training steps"),
    ),
    Method(
        "ternary",
        "quantization",
        "Train with weights -a, 0 and +b, computed or trained; fold_qat() then gives plain layers",
        "Li & Liu, Ternary Weight Networks, arXiv 1605.04711, 2016; trained: Zhu et al., Trained Ternary Quantization, "
        "ICLR 2017",
        "sparsecore.quantize:prepare_ternary",
        needs=("data", "loss", "training steps"),
    ),
    Method(
        "deep-compression",
        "file",
        "Write a pruned model with shared weights as codes and gaps, Huffman coded, to one small file",
        _DEEP_COMPRESSION,
        "sparsecore.deep_compression:save_compressed",
        inputs=("model", "path"),
    ),
    Method(
        "eie",
        "execution",
        "Run linear layers straight from codes and gaps, skipping zero activations",
        "Han et al., EIE: Efficient Inference Engine on Compressed Deep Neural Network, ISCA 2016",
        "sparsecore.deep_compression:load_compressed",
        inputs=("path", "model_fn"),
        fixed={"run_compressed": True},
    ),
)

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
_MOLCHANOV = "Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017"
_LI = "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017"

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
        _MOLCHANOV,
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
        "pretrained",
        "pruning",
        "Prune a transformers language model in a folder block by block, in the memory of one block; can be resumed",
        "Frantar & Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, ICML 2023; "
        "Wanda: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024",
        "sparsecore.prune:prune_pretrained",
        inputs=("model", "out", "data", "progress"),
        needs=("data",),
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
        "l1-filters",
        "structured",
        "Remove the filters and neurons of smallest L1 norm; also greedily, without weights on removed channels",
        _LI,
        "sparsecore.prune.structured:prune_channels",
        inputs=("model", "example_inputs"),
        fixed={"criterion": "l1"},
        unused=("batches", "loss"),
    ),
    Method(
        "neurons",
        "structured",
        "Remove the units of smallest mean activation",
        _MOLCHANOV,
        "sparsecore.prune.structured:prune_channels",
        inputs=("model", "example_inputs", "batches"),
        needs=("data",),
        fixed={"criterion": "activation"},
        unused=("loss",),
    ),
    Method(
        "taylor-filters",
        "structured",
        "Remove the channels without which the loss changes least, to first order",
        _MOLCHANOV,
        "sparsecore.prune.structured:prune_channels",
        inputs=("model", "example_inputs", "batches", "loss"),
        needs=("data", "loss"),
        fixed={"criterion": "taylor"},
    ),
    Method(
        "filters-to-target",
        "structured",
        "Remove filters to a target in FLOPs, parameters or latency: alike everywhere, or by a sensitivity scan",
        f"{_LI}, section 3.2; as in PaddleSlim",
        "sparsecore.prune.structured:prune_to_target",
        inputs=("model", "example_inputs", "sensitivity", "batches", "loss"),
    ),
    Method(
        "network-slimming",
        "structured",
        "Remove the channels of smallest BatchNorm scale, trained under a penalty, by one threshold over the model",
        "Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017",
        "sparsecore.prune.structured:slim",
        inputs=("model", "example_inputs"),
        needs=("data", "loss", "training steps"),
    ),
    Method(
        "resrep",
        "structured",
        "1x1 compactors learn which channels can go, and are merged away exactly",
        "Ding et al., ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting, ICCV 2021",
        "sparsecore.prune.structured:ResRep",
        inputs=("model", "example_inputs"),
        needs=("data", "loss", "training steps"),
    ),
    Method(
        "attention-heads",
        "structured",
        "Remove the attention heads without which the loss changes least",
        "Michel et al., Are Sixteen Heads Really Better than One?, NeurIPS 2019",
        "sparsecore.prune.structured:prune_heads",
        inputs=("model", "example_inputs", "batches", "loss"),
        needs=("data", "loss"),
    ),
    Method(
        "layer-drop",
        "structured",
        "Remove every floor(1/p)-th layer of a model that drop_layers() trained with layers skipped at random",
        "Fan et al., Reducing Transformer Depth on Demand with Structured Dropout, ICLR 2020",
        "sparsecore.prune.structured:prune_layers",
        needs=("data", "loss", "training steps"),
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
    Method(
        "binary-execution",
        "execution",
        "Run layers of two weights per row, plus and minus a scale, from 1 bit each; compile() tries it by itself",
        "Courbariaux et al., BinaryConnect: Training Deep Neural Networks with binary weights during propagations, "
        "NeurIPS 2015",
        "sparsecore.nn:BinaryLinear.from_dense",
        inputs=("dense",),
    ),
    Method(
        "ternary-execution",
        "execution",
        "Run layers of weights -a, 0 and +b per row from 2 bits each; compile() tries it by itself",
        "Zhu et al., Trained Ternary Quantization, ICLR 2017",
        "sparsecore.nn:TernaryLinear.from_dense",
        inputs=("dense",),
    ),
    Method(
        "distillation",
        "training",
        "Train a student on the labels and on a teacher's softened outputs, and on its layers by L2 or FSP losses",
        "Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531, 2015; layers: Romero et al., "
        "FitNets: Hints for Thin Deep Nets, ICLR 2015; Yim et al., A Gift from Knowledge Distillation, CVPR 2017",
        "sparsecore.train:Distillation",
        inputs=("student", "teacher"),
        needs=("data", "labels", "training steps"),
    ),
    Method(
        "apprentice",
        "training",
        "Train a student of few bits beside a teacher of full precision, which learns too (A) or stays (B, C)",
        "Mishra & Marr, Apprentice: Using Knowledge Distillation Techniques To Improve Low-Precision Network Accuracy, "
        "ICLR 2018",
        "sparsecore.train:Apprentice",
        inputs=("student", "teacher"),
        needs=("data", "labels", "training steps"),
    ),
    Method(
        "early-exit",
        "architecture",
        "Put classifiers along the depth; samples that are sure enough leave the batch there",
        "Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification, ICLR 2018",
        "sparsecore.train:EarlyExit.from_sequential",
        inputs=("model", "exits"),
        needs=("data", "labels", "training steps"),
    ),
    Method(
        "separable",
        "architecture",
        "Replace k x k convolutions by depthwise and pointwise ones, to be trained on",
        "Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, "
        "arXiv 1704.04861, 2017; weights: Guo et al., Network Decoupling, BMVC 2018",
        "sparsecore.train:replace_by_separable",
    ),
    Method(
        "low-rank",
        "architecture",
        "Replace linear layers and convolutions by two of a low rank or up to an error of their weights",
        "Denton et al., Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation, "
        "NeurIPS 2014",
        "sparsecore.train:replace_by_low_rank",
    ),
)

"""The operations: public functions over ``torch.ops.sparsecore``, their fakes and their gradients.

Each operation stands together: the function, its fake (shapes for torch.compile and torch.export) and its derivative.
Kernels behind them are chosen by the tables in csrc/kernels. Layers call ``raw`` directly: their weights were validated
when they were built. (In the schemas ``kernel`` is ``kernel_name``: Inductor takes the shorter word for itself.)
"""

from sparsecore.ops import packing as packing
from sparsecore.ops.convolution import conv2d as conv2d
from sparsecore.ops.dense import avg_pool2d as avg_pool2d
from sparsecore.ops.dense import global_avg_pool2d as global_avg_pool2d
from sparsecore.ops.dense import max_pool2d as max_pool2d
from sparsecore.ops.dense import scale_shift as scale_shift
from sparsecore.ops.depthwise import depthwise_conv2d as depthwise_conv2d
from sparsecore.ops.int8 import conv2d_int8 as conv2d_int8
from sparsecore.ops.int8 import linear_int8 as linear_int8
from sparsecore.ops.matmul import spmm as spmm
from sparsecore.ops.planes import spmm_planes as spmm_planes
from sparsecore.ops.shared import ACTIVATIONS as ACTIVATIONS

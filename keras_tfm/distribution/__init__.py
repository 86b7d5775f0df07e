"""Training on many devices: which part of which weight lives where, and what `tf.distribute` gets right."""

from keras_tfm.distribution.hosts import Processes, initialize, processes
from keras_tfm.distribution.layouts import Layouts, data_parallel, fsdp, mesh, tensor_parallel
from keras_tfm.distribution.report import LayoutReport, Placement, check_placed, layout_report
from keras_tfm.distribution.strategies import check_strategy
from keras_tfm.distribution.together import Together

__all__ = [
    "LayoutReport",
    "Layouts",
    "Placement",
    "Processes",
    "Together",
    "check_placed",
    "check_strategy",
    "data_parallel",
    "fsdp",
    "initialize",
    "layout_report",
    "mesh",
    "processes",
    "tensor_parallel",
]

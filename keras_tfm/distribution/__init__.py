"""Training on many devices: which part of which weight lives where, and what `tf.distribute` gets right."""

from keras_tfm.distribution.layouts import Layouts, data_parallel, fsdp, mesh, tensor_parallel
from keras_tfm.distribution.report import LayoutReport, Placement, check_placed, layout_report
from keras_tfm.distribution.strategies import check_strategy

__all__ = [
    "LayoutReport",
    "Layouts",
    "Placement",
    "check_placed",
    "check_strategy",
    "data_parallel",
    "fsdp",
    "layout_report",
    "mesh",
    "tensor_parallel",
]

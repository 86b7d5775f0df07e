"""Training on many devices, by `keras.distribution`: which part of which weight lives where."""

from keras_tfm.distribution.layouts import Layouts, data_parallel, fsdp, mesh, tensor_parallel
from keras_tfm.distribution.report import LayoutReport, Placement, check_placed, layout_report

__all__ = [
    "LayoutReport",
    "Layouts",
    "Placement",
    "check_placed",
    "data_parallel",
    "fsdp",
    "layout_report",
    "mesh",
    "tensor_parallel",
]

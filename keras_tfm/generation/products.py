"""torch: a recorded step's products of few rows with matrices that stay, in the way that a processor does them best."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from keras_tfm.generation import graph_passes

# Products of one input are joined where a weight has at most so many bytes: reading it then takes about as long as calling
# the product does. Larger ones would gain little, and the joined weights are a copy.
SMALL = 1 << 20
# On a CPU a few rows times a transposed matrix, as of a tied head, take up to twice the time of the matrix laid out anew,
# measured for 3 to 16 rows (8192 x 256 and 8 rows: 440 and 191 microseconds). A copy of it is made for each text, so it is
# not to be large; for larger ones the product is turned about, which helps from 6 rows on.
FEW_ROWS, TURNED, COPIED = range(3, 17), range(6, 17), 1 << 24
# Rows for which Inductor's sums take less time than oneDNN's products, the time to compile them aside.
SUMMED = range(1, 5)


@functools.cache
def is_slow_library() -> bool:
    """Whether torch's products are MKL's on an AMD processor: a half to a fifth as fast as what else there is, any size."""
    import torch

    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return libraries and "AMD" in str(found.get("cpu_name"))


@functools.cache
def _library() -> Any:
    """Where the operation `linear` is registered, for as long as this is held."""
    import torch

    library = torch.library.Library("keras_tfm", "FRAGMENT")
    library.define("linear(Tensor rows, Tensor matrix) -> Tensor")
    library.impl("linear", lambda rows, matrix: torch.ops.mkldnn._linear_pointwise(*_linear(rows, matrix)), "CPU")
    fake = torch.library.register_fake("keras_tfm::linear", lib=library)
    fake(lambda rows, matrix: rows.new_empty((rows.shape[0], matrix.shape[0])))
    return library


def linear() -> Any:
    """oneDNN's product as an operation (rows, matrix) -> rows @ matrix.T that Inductor leaves as it is.

    Of oneDNN's own operation Inductor wants a matrix that is a constant.
    """
    import torch

    _library()
    return torch.ops.keras_tfm.linear.default


def _linear(rows: Any, matrix: Any, bias: Any = None) -> tuple[Any, ...]:
    """The arguments of oneDNN's operation for rows @ matrix.T + bias."""
    return rows, matrix, bias, "none", [], ""


def join(graph: Any, changing: set[Any]) -> None:
    """Let products of one input with several fixed matrices, as of queries, keys and values, be one product.

    The joined matrices are made with what else is fixed; parts of the product are views of it.
    """
    import torch

    aten = torch.ops.aten
    groups: dict[Any, list[Any]] = {}
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
            continue
        *bias, given, weight = node.args
        values = [part.meta.get("val") for part in (*bias, given, weight)]
        if given not in changing or changing.intersection((*bias, weight)) or any(value is None for value in values):
            continue
        if any(value.ndim != 1 for value in values[:-2]) or values[-1].numel() * values[-1].element_size() > SMALL:
            continue
        groups.setdefault((node.target, given, values[-1].dtype, values[-2].shape), []).append(node)
    joined = [nodes for nodes in groups.values() if len(nodes) > 1]
    if not joined:
        return
    graph_passes.fixed_first(graph, changing)
    for nodes in joined:
        widths = [node.args[-1].meta["val"].shape[1] for node in nodes]
        with graph.inserting_before(nodes[0]):
            *bias, weight = [_side_by_side(graph, parts) for parts in zip(*map(_fixed, nodes), strict=True)]
            product = graph.call_function(nodes[0].target, (*bias, nodes[0].args[-2], weight))
            places = itertools.pairwise(itertools.accumulate(widths, initial=0))
            parts = [graph.call_function(aten.slice.Tensor, (product, 1, *place)) for place in places]
        for node, part in zip(nodes, parts, strict=True):
            graph_passes.replace(node, part)


def _fixed(node: Any) -> tuple[Any, ...]:
    """A product's bias, where it has one, and its matrix."""
    return (*node.args[:-2], node.args[-1])


def _side_by_side(graph: Any, nodes: Sequence[Any]) -> Any:
    """Tensors along their last axis, as one."""
    import torch

    values = [node.meta["val"] for node in nodes]
    found = graph.call_function(torch.ops.aten.cat.default, (list(nodes), values[0].ndim - 1))
    found.meta["val"] = values[0].new_empty((*values[0].shape[:-1], sum(value.shape[-1] for value in values)))
    return found


def suit(graph: Any, changing: set[Any], compiled: bool = False) -> None:
    """Let a CPU's products of rows with a fixed float32 matrix be what suits the processor.

    Args:
        changing: The nodes whose values differ from step to step.
        compiled: Inductor compiles the graph; biases are apart from products.
    """
    import torch

    aten = torch.ops.aten
    slow = is_slow_library()
    for node in list(graph.nodes):
        if node.op != "call_function" or node.kwargs or node.target not in (aten.mm.default, aten.addmm.default):
            continue
        rows, matrix = (part.meta.get("val") for part in node.args[-2:])
        if node.args[-1] in changing or rows is None or matrix is None or min(matrix.shape) == 1:
            continue
        if matrix.device.type != "cpu" or matrix.dtype != torch.float32:
            continue
        transposed = matrix.stride(0) == 1 and matrix.stride(1) >= matrix.shape[0]
        if not transposed and (matrix.stride(1) != 1 or matrix.stride(0) < matrix.shape[1]):
            continue
        copied = matrix.numel() * matrix.element_size() <= COPIED
        if not slow:
            if node.target is aten.mm.default and transposed:
                _laid_out(graph, node, rows.shape[0], copied)
        elif compiled and node.target is aten.mm.default and rows.shape[0] in SUMMED and (transposed or copied):
            _summed(graph, node, rows.shape, transposed)
        else:
            _by_onednn(graph, node, compiled)


def _laid_out(graph: Any, node: Any, rows: int, copied: bool) -> None:
    """Let MKL's product of few rows with a transposed matrix have it in the order that it reads best."""
    import torch

    aten = torch.ops.aten
    with graph.inserting_before(node):
        if rows in FEW_ROWS and copied:
            options = {"memory_format": torch.contiguous_format}
            node.args = (node.args[0], graph.call_function(aten.clone.default, (node.args[1],), options))
        elif rows in TURNED:
            turned = [graph.call_function(aten.permute.default, (part, [1, 0])) for part in node.args]
            product = graph.call_function(aten.mm.default, (turned[1], turned[0]))
            found = graph.call_function(aten.permute.default, (product, [1, 0]))
            graph_passes.replace(node, found)


def _summed(graph: Any, node: Any, shape: tuple[int, int], transposed: bool) -> None:
    """Let a product be sums, one for each row, which Inductor makes one loop from: it reads the matrix once for all."""
    import torch

    aten, (count, width) = torch.ops.aten, shape
    with graph.inserting_before(node):
        call, contiguous = graph.call_function, {"memory_format": torch.contiguous_format}
        matrix = call(aten.permute.default, (node.args[1], [1, 0]))
        if not transposed:
            matrix = call(aten.clone.default, (matrix,), contiguous)
        rows = call(aten.clone.default, (node.args[0],), contiguous)
        sums = []
        for row in range(count):
            # Of a view by strides Inductor makes the memory first. Otherwise it would compute the row for every sum anew.
            given = call(aten.as_strided.default, (rows, [1, width], [width, 1], row * width))
            found = call(aten.sum.dim_IntList, (call(aten.mul.Tensor, (matrix, given)), [1]))
            sums.append(call(aten.unsqueeze.default, (found, 0)))
        product = sums[0] if count == 1 else call(aten.cat.default, (sums,))
    graph_passes.replace(node, product)


def _by_onednn(graph: Any, node: Any, compiled: bool) -> None:
    """Let a product, and a bias that is added to it, be oneDNN's, which takes matrices as they are laid out."""
    import torch

    aten = torch.ops.aten
    *bias, rows, matrix = node.args
    if bias and (compiled or bias[0].meta.get("val") is None or bias[0].meta["val"].ndim != 1):
        return
    with graph.inserting_before(node):
        matrix = graph.call_function(aten.permute.default, (matrix, [1, 0]))
        if compiled:
            product = graph.call_function(linear(), (rows, matrix))
        else:
            product = graph.call_function(torch.ops.mkldnn._linear_pointwise.default, _linear(rows, matrix, *bias))
    graph_passes.replace(node, product)

"""torch: a recorded graph made ready for Inductor, PyTorch's compiler, and compiled by it."""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

from keras_tfm.generation import graph_passes

LEAST = -60.0  # logarithm of the least part of a softmax
SERIAL = 8192  # elements of a loop for which a second thread does not pay: waking it takes some microseconds
LOOKING = threading.Lock()  # held while a first call is looked at
SMALL = 1 << 16  # bytes that are copied in less time than a tensor takes to be made or given


def prepare(graph: Any) -> None:
    """Let a CPU's operations be those that Inductor makes quick loops from; biases are apart from products already."""
    one_row(graph)
    attention_as_sums(graph)
    gelu_by_sigmoid(graph)
    without_denormals(graph)


def bias_apart(graph: Any) -> None:
    """Let a CPU's float32 products with a bias be a product and a sum, which Inductor joins with what follows.

    torch copies the bias to where the product goes first, in a call of its own: at few rows a tenth of a step.
    """
    import torch

    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not aten.addmm.default or node.kwargs:
            continue
        bias, rows, matrix = node.args
        value = rows.meta.get("val")
        if value is None or value.device.type != "cpu" or value.dtype != torch.float32:
            continue
        with graph.inserting_before(node):
            product = graph.call_function(aten.mm.default, (rows, matrix))
            found = graph.call_function(aten.add.Tensor, (product, bias))
        graph_passes.replace(node, found)


def attention_as_sums(graph: Any) -> None:
    """Let a CPU's attention of one query be sums of products, which Inductor makes loops of its own from.

    torch's kernel calls a library for blocks of keys; at one query that takes longer than reading them.
    """
    import torch

    aten = torch.ops.aten
    kernel = aten._scaled_dot_product_flash_attention_for_cpu.default
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not kernel or len(node.args) != 3:
            continue
        query, key, value = node.args  # (batch, heads, 1, head_dim), (batch, heads, keys, head_dim) twice
        options = dict(node.kwargs)
        mask, scale = options.pop("attn_mask", None), options.pop("scale", None)
        shape, others = query.meta["val"].shape, [user for user in node.users if user.args[1] != 0]
        if options or scale is None or shape[2] != 1 or query.meta["val"].dtype != torch.float32 or others:
            continue
        with graph.inserting_before(node):
            call = graph.call_function
            scores = call(aten.sum.dim_IntList, (call(aten.mul.Tensor, (query, key)), [-1], True))
            scores = call(aten.permute.default, (call(aten.mul.Tensor, (scores, scale)), [0, 1, 3, 2]))
            scores = scores if mask is None else call(aten.add.Tensor, (scores, mask))
            weights = call(aten.permute.default, (call(aten._softmax.default, (scores, -1, False)), [0, 1, 3, 2]))
            output = call(aten.sum.dim_IntList, (call(aten.mul.Tensor, (weights, value)), [2], True))
        for part in list(node.users):
            graph_passes.replace(part, output)
        graph.erase_node(node)


def one_row(graph: Any) -> None:
    """Let a CPU's products of a single row take it as a row of a matrix.

    Inductor gives a dimension of one element, seen through a view, the stride 0, for which torch copies the row first.
    """
    import torch

    aten = torch.ops.aten
    views = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not aten.mm.default or node.args[0].target not in views:
            continue
        whole = node.args[0]
        if whole.meta.get("val") is None or whole.meta["val"].shape[0] != 1:
            continue
        while whole.target in views:
            whole = whole.args[0]
        value = whole.meta.get("val")
        if not graph_passes.is_new(whole) or value is None or value.device.type != "cpu":
            continue
        width = value.numel()
        if max(value.shape) != width:  # it has other dimensions than ones beside it
            continue
        with graph.inserting_before(node):
            row = graph.call_function(aten.as_strided.default, (whole, [1, width], [width, 1]))
        node.args = (row, node.args[1])


def gelu_by_sigmoid(graph: Any) -> None:
    """Let a CPU's float32 GELU in its tanh form be x sigmoid(2 u), which is the same: (1 + tanh u) / 2 = sigmoid(2 u).

    Inductor calls a library for tanh, and has an exponential of its own, in half the time.
    """
    import torch

    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not aten.gelu.default:
            continue
        value = node.meta.get("val")
        if dict(node.kwargs) != {"approximate": "tanh"} or value is None:
            continue
        if value.device.type != "cpu" or value.dtype != torch.float32:
            continue
        with graph.inserting_before(node):
            call, x = graph.call_function, node.args[0]
            cubic = call(aten.mul.Tensor, (call(aten.mul.Tensor, (x, x)), 0.044715))
            twice = call(aten.mul.Tensor, (x, call(aten.add.Tensor, (cubic, 1.0))))
            twice = call(aten.mul.Tensor, (twice, 2 * math.sqrt(2 / math.pi)))
            found = call(aten.mul.Tensor, (x, call(aten.sigmoid.default, (twice,))))
        graph_passes.replace(node, found)


def without_denormals(graph: Any) -> None:
    """Let softmaxes have zeros where they would have less than e^-60 of their largest part: 1e-26, far below its rounding.

    A CPU takes some hundred cycles for a number that small, and sharp attention and logits have many of them.
    """
    import torch

    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (aten._softmax.default, aten._log_softmax.default):
            continue
        scores, axis, half = node.args
        value = scores.meta.get("val")
        if half or (value is not None and (value.device.type != "cpu" or value.dtype != torch.float32)):
            continue
        with graph.inserting_before(node):
            call = graph.call_function
            below = call(aten.sub.Tensor, (scores, call(aten.amax.default, (scores, [axis], True))))
            parts = call(aten.exp.default, (call(aten.clamp_min.default, (below, LEAST)),))
            parts = call(aten.mul.Tensor, (parts, call(aten.gt.Scalar, (below, LEAST))))
            total = call(aten.sum.dim_IntList, (parts, [axis], True))
            if node.target is aten._softmax.default:
                found = call(aten.div.Tensor, (parts, total))
            else:
                found = call(aten.sub.Tensor, (below, call(aten.log.default, (total,))))
            graph_passes.replace(node, found)


def write_over(graph: Any, results: Sequence[Any], inputs: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Let small results be written over the inputs whose next values they are: making tensors of them takes longer.

    None is, where one may be another input or a part of one: Inductor takes out the copy that would be needed first.

    Returns:
        What stands for each result, and the places of those that are written that were not before.
    """
    import torch

    (output,) = (node for node in graph.nodes if node.op == "output")
    places = [graph_passes.overwritten_input(node, inputs) for node in results]
    moved = [place for place, found in enumerate(places) if found != place]
    stand = list(results)
    if not all(graph_passes.is_new(graph_passes.memory_of(results[place])) for place in moved):
        return stand, []
    written = [place for place in moved if _bytes(inputs[place]) <= SMALL]
    with graph.inserting_before(output):
        for place in written:
            stand[place] = graph.call_function(torch.ops.aten.copy_.default, (inputs[place], results[place]))
            stand[place].meta["val"] = inputs[place].meta["val"]
    return stand, written


def _bytes(node: Any) -> int:
    """Of a node's tensor; 0 for what is none."""
    value = node.meta.get("val")
    return 0 if value is None else value.numel() * value.element_size()


def pack(graph: Any, fixed: Sequence[Any], results: Sequence[Any], changing: set[Any]) -> tuple[list[Any], list[Any]]:
    """Let a CPU's small fixed tensors of a dtype, as biases and settings, be given as one, of which the step takes views.

    What is a result, or a product's matrix, is not among them.

    Returns:
        What is fixed then, and the views.
    """
    import torch

    aten = torch.ops.aten
    groups: dict[Any, list[Any]] = {}
    for node in fixed:
        value = node.meta.get("val")
        products = {aten.mm.default, aten.addmm.default, aten.bmm.default} & {user.target for user in node.users}
        if value is None or value.device.type != "cpu" or not value.is_contiguous() or products or node in results:
            continue
        if 0 < _bytes(node) <= SMALL:
            groups.setdefault(value.dtype, []).append(node)
    whole, views = [node for node in fixed if not any(node in nodes for nodes in groups.values())], []
    graph_passes.fixed_first(graph, changing)
    first = next(node for node in graph.nodes if node in changing and node.op == "call_function")
    for nodes in groups.values():
        with graph.inserting_before(first):
            flat, place = [graph.call_function(aten.reshape.default, (node, [-1])) for node in nodes], 0
            whole.append(graph.call_function(aten.cat.default, (flat,)))
            for node in nodes:
                value = node.meta["val"]
                view = graph.call_function(aten.as_strided.default, (whole[-1], value.shape, value.stride(), place))
                place += value.numel()
                node.replace_all_uses_with(view, delete_user_cb=changing.__contains__)
                views.append(view)
    return whole, views


def compiled(module: Any, examples: list[Any]) -> Callable[[list[Any]], list[Any]]:
    """A module of tensors compiled by Inductor: a list of arguments, of which it does away, to a list of results.

    Arguments must have the examples' shapes, dtypes and strides, which is not looked at again.

    Raises:
        RuntimeError: where there is no compiler that Inductor can use.
    """
    import torch
    from torch._inductor import compile_fx

    options: dict[str, Any] = {"size_asserts": False}
    if examples[0].device.type == "cpu":
        options |= {
            "cpp_wrapper": True,  # Python's calls would take as long as the products of a small model
            "pattern_matcher": False,  # would put biases back into products
            "cpp.min_chunk_size": max(SERIAL // torch.get_num_threads(), 512),  # of a thread; 512 is Inductor's own
        }
    made: list[Any] = []

    def inner(*arguments: Any, **others: Any) -> Any:
        made.append(compile_fx.compile_fx_inner(*arguments, **others))
        return made[-1]

    try:
        with torch.no_grad():
            run: Any = compile_fx.compile_fx(module, examples, inner, options)
    except Exception as error:
        raise RuntimeError(
            "PyTorch's compiler (Inductor) failed, which jit_compile=True asks for: on a CPU it needs a C++ compiler such "
            "as g++, named by the environment variable CXX if it has another name. Generating goes without: "
            "jit_compile=False."
        ) from error
    return Unwrapped(run, made[-1])


class Unwrapped:
    """Compiled code without what AOT autograd puts around it, where that was seen to change nothing in a first call.

    Passing through it takes as long as a small product.

    Args:
        whole: Arguments to results, by way of the code.
        code: What Inductor made.
    """

    def __init__(self, whole: Callable[..., list[Any]], code: Any):
        self._whole, self._code = whole, code
        self._run: Callable[[list[Any]], list[Any]] | None = None

    def __call__(self, arguments: list[Any]) -> list[Any]:
        """The results; the list of arguments is emptied."""
        if self._run is None:
            return self._first(arguments)
        return self._run(arguments)

    def _first(self, arguments: list[Any]) -> list[Any]:
        passed: list[Any] = []
        made: list[Any] = []

        def seen(given: list[Any]) -> list[Any]:
            passed[:] = given
            made[:] = plain(given)
            return list(made)

        with LOOKING:
            plain, self._code.current_callable = self._code.current_callable, seen
            try:
                results = list(self._whole(*arguments))
            finally:
                self._code.current_callable = plain
        alike = len(passed) == len(arguments) and len(made) == len(results)
        alike = alike and all(map(operator.is_, [*passed, *made], [*arguments, *results]))
        self._run = plain if alike else lambda arguments: self._whole(*arguments)
        return results

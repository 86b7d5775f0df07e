"""torch: the operations of a step written down once, what does not change from step to step taken out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keras_tfm.generation import graph_passes

Tensors = list[Any]


class Recorded:
    """A function of tensors, as the operations that one run performed, without the layers around them.

    Keras costs more than the arithmetic of a step, and so would the operations that every step repeats: shapes of weights,
    ranges, masks of settings. They are performed once for as long as weights and settings stay as they are.

    Args:
        function: (weights, state, settings) -> tensors, each a flat list.
        weights, state, settings: Examples of its arguments. Operations must not depend on their values, and the function
            may overwrite tensors of the state only.
        compiled: Have what changes compiled by Inductor at its first run: some ten seconds, and a C++ compiler on a CPU.
    """

    def __init__(
        self,
        function: Callable[..., Tensors],
        weights: Tensors,
        state: Tensors,
        settings: Tensors,
        compiled: bool = False,
    ):
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx

        with torch.no_grad():
            module = make_fx(function)(weights, state, settings)
        module.graph.eliminate_dead_code()
        graph_passes.merge_equal(module.graph)
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        state_inputs = inputs[len(weights) : len(weights) + len(state)]
        changing = graph_passes.changing_nodes(module.graph, state_inputs)
        graph_passes.join_products(module.graph, changing)
        graph_passes.lay_out(module.graph, changing)
        if compiled:
            graph_passes.attention_as_sums(module.graph)
            graph_passes.without_denormals(module.graph)
        changing = graph_passes.changing_nodes(module.graph, state_inputs)
        (output,) = (node for node in module.graph.nodes if node.op == "output")
        fixed = list(
            dict.fromkeys(
                used
                for node in module.graph.nodes
                if node in changing or node is output
                for used in node.all_input_nodes
                if used not in changing and used.op != "get_attr"
            )
        )
        before = [node for node in module.graph.nodes if node not in changing and node is not output]
        given = [node for node in inputs if node not in changing]
        self._once = _module(module, before, given, fixed)
        steps = [node for node in module.graph.nodes if node in changing and node not in state_inputs]
        steps = [node for node in module.graph.nodes if node.op == "get_attr"] + steps
        self._step = _module(module, steps, [*fixed, *state_inputs], output.args[0])
        self._run: Callable[..., Tensors] | None = None if compiled else self._step
        self._strides: list[tuple[int, ...]] = []

    def bound(self, weights: Tensors, settings: Tensors) -> Callable[[Tensors], Tensors]:
        """State to what the function gives, with weights and settings as they are now."""
        fixed = self._once(*weights, *settings)
        if self._run is self._step:
            return lambda state: self._step(*fixed, *state)

        def run(state: Tensors) -> Tensors:
            if self._run is None:
                self._run = compiled(self._step, [*fixed, *state])
                self._strides = [each.stride() for each in state]
            elif [each.stride() for each in state] != self._strides:  # of which compiled code is sure
                state = [_laid_out(each, strides) for each, strides in zip(state, self._strides, strict=True)]
            return self._run(*fixed, *state)

        return run


def compiled(module: Any, examples: Tensors) -> Callable[..., Tensors]:
    """A module of tensors compiled by Inductor for arguments of the examples' shapes, dtypes and strides.

    Raises:
        RuntimeError: where there is no compiler that Inductor can use.
    """
    import torch
    import torch._inductor

    # Called from C++ on a CPU, where Python would take as long as the products of a small model.
    options = {"cpp_wrapper": examples[0].device.type == "cpu"}
    try:
        with torch.no_grad():
            return torch._inductor.compile(module, examples, options)
    except Exception as error:
        raise RuntimeError(
            "PyTorch's compiler (Inductor) failed, which jit_compile=True asks for: on a CPU it needs a C++ compiler such "
            "as g++, named by the environment variable CXX if it has another name. Generating goes without: "
            "jit_compile=False."
        ) from error


def _laid_out(tensor: Any, strides: tuple[int, ...]) -> Any:
    """The tensor, or a copy of it, with these strides."""
    import torch

    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _module(source: Any, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Any) -> Any:
    """A module of some of the source's nodes."""
    import torch

    graph, copies = torch.fx.Graph(), {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
    for node in nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(torch.fx.map_arg(outputs, copies.__getitem__))
    graph.eliminate_dead_code()
    return torch.fx.GraphModule(source, graph)

"""torch: the operations of a step written down once, what does not change from step to step taken out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keras_tfm.generation import graph_passes

Tensors = list[Any]
SERIAL = 8192  # elements of a loop for which a second thread does not pay: waking it takes some microseconds


class Kept:
    """What was made of weights, such as joined matrices, for as long as one text is written.

    It is made anew once a weight is another tensor or was written to. What is written through `.data` passes torch's count
    of writings by, which is why one text does not take over what another kept.
    """

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}
        self._seen: dict[Any, tuple[int, Any]] = {}

    def of(self, names: Sequence[Any], weights: Tensors) -> dict[Any, Any]:
        """Expression to tensor, for weights as they are now."""
        for name, weight in zip(names, weights, strict=True):
            # Tensors of torch's inference mode are not counted.
            now = (weight.data_ptr(), object() if weight.is_inference() else weight._version)
            if self._seen.setdefault(name, now) != now:
                self._made.clear()
                self._seen[name] = now
        return self._made


class Recorded:
    """A function of tensors, as the operations that one run performed, without the layers around them.

    Keras costs more than the arithmetic of a step, and so would the operations that every step repeats: shapes of weights,
    ranges, masks of settings. They are performed once for as long as weights and settings stay as they are.

    Args:
        function: (weights, state, settings) -> tensors, each a flat list.
        names: What tells each weight apart, in other functions too.
        weights, state, settings: Examples of its arguments. Operations must not depend on their values, and the function
            may overwrite tensors of the state only.
        repeated: It is run many times for each time that weights are bound, so that making matrices of them pays.
        compiled: Have what changes compiled by Inductor at its first run: some ten seconds, and a C++ compiler on a CPU.
    """

    def __init__(
        self,
        function: Callable[..., Tensors],
        names: Sequence[Any],
        weights: Tensors,
        state: Tensors,
        settings: Tensors,
        repeated: bool = True,
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
        if repeated:
            graph_passes.join_products(module.graph, changing)
            graph_passes.lay_out(module.graph, changing)
        if compiled:
            graph_passes.for_inductor(module.graph)
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
        of_weights = graph_passes.expressions(module.graph, dict(zip(inputs, names, strict=False)), changing)
        made = [
            node
            for node in of_weights
            if node.op != "placeholder" and (node in fixed or any(user not in of_weights for user in node.users))
        ]
        self._names, self._made = list(names), [of_weights[node] for node in made]
        self._make = _module(module, list(of_weights), inputs[: len(weights)], made)
        before = [node for node in module.graph.nodes if node not in changing and node is not output]
        before = [node for node in before if node not in of_weights]
        given = [node for node in inputs if node not in changing]
        self._once = _module(module, before, [*given, *made], fixed)
        steps = [node for node in module.graph.nodes if node in changing and node not in state_inputs]
        steps = [node for node in module.graph.nodes if node.op == "get_attr"] + steps
        # What of the state is overwritten is not returned: making it a tensor again takes longer than a small product.
        self._in_place = [graph_passes.overwritten_input(node, state_inputs) for node in output.args[0]]
        results = [node for node, place in zip(output.args[0], self._in_place, strict=True) if place is None]
        self._step = _module(module, steps, [*fixed, *state_inputs], results)
        self._run: Callable[..., Tensors] | None = None if compiled else self._step
        self._strides: list[tuple[int, ...]] = []

    def bound(self, weights: Tensors, settings: Tensors, kept: Kept) -> Callable[[Tensors], Tensors]:
        """State to what the function gives, with weights and settings as they are now."""
        made = kept.of(self._names, weights)
        if any(expression not in made for expression in self._made):
            made.update(zip(self._made, self._make(*weights), strict=True))
        fixed = self._once(*weights, *settings, *(made[expression] for expression in self._made))
        if self._run is self._step:
            return lambda state: self._whole(self._step(*fixed, *state), state)

        def run(state: Tensors) -> Tensors:
            if self._run is None:
                self._run = compiled(self._step, [*fixed, *state])
                self._strides = [each.stride() for each in state]
            elif [each.stride() for each in state] != self._strides:  # of which compiled code is sure
                state = [_laid_out(each, strides) for each, strides in zip(state, self._strides, strict=True)]
            return self._whole(self._run(*fixed, *state), state)

        return run

    def _whole(self, results: Tensors, state: Tensors) -> Tensors:
        """The step's results, with what it overwrote of the state."""
        others = iter(results)
        return [next(others) if place is None else state[place] for place in self._in_place]


def compiled(module: Any, examples: Tensors) -> Callable[..., Tensors]:
    """A module of tensors compiled by Inductor for arguments of the examples' shapes, dtypes and strides.

    Raises:
        RuntimeError: where there is no compiler that Inductor can use.
    """
    import torch
    import torch._inductor

    options: dict[str, Any] = {}
    if examples[0].device.type == "cpu":
        options |= {
            "cpp_wrapper": True,  # Python's calls would take as long as the products of a small model
            "pattern_matcher": False,  # would put biases back into products
            "cpp.min_chunk_size": max(SERIAL // torch.get_num_threads(), 512),  # of a thread; 512 is Inductor's own
        }
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

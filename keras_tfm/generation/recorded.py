"""torch: the operations of a step written down once, what does not change from step to step taken out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keras_tfm.generation import graph_passes, inductor, products

Tensors = list[Any]
Strides = list[tuple[int, ...]]


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
        loops: It gives whether to go on, a boolean without dimensions, and then the next state, as `loop` takes it.
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
        loops: bool = False,
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
            products.join(module.graph, changing)
        if compiled:
            inductor.bias_apart(module.graph)
        if repeated:
            products.suit(module.graph, changing, compiled)
        if compiled:
            inductor.prepare(module.graph)
        (output,) = (node for node in module.graph.nodes if node.op == "output")
        results = list(output.args[0])
        self._written: list[int] = []  # places of the state that compiled code overwrites beside the function
        if compiled and loops:
            results[1:], self._written = inductor.write_over(module.graph, results[1:], state_inputs)
        changing = graph_passes.changing_nodes(module.graph, state_inputs)
        used = [each for node in module.graph.nodes if node in changing for each in node.all_input_nodes] + results
        fixed = list(dict.fromkeys(node for node in used if node not in changing and node.op != "get_attr"))
        if compiled:
            fixed, views = inductor.pack(module.graph, fixed, results, changing)
            changing.update(views)
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
        self._in_place = [graph_passes.overwritten_input(node, state_inputs) for node in results]
        if loops:
            self._in_place[0] = None
        results = [node for node, place in zip(results, self._in_place, strict=True) if place is None]
        self._step = _module(module, steps, [*fixed, *state_inputs], results)
        self._compiled = compiled
        self._runs: dict[int, tuple[Callable[[Tensors], Tensors], Strides]] = {}  # by the number of threads

    def bound(self, weights: Tensors, settings: Tensors, kept: Kept) -> Callable[[Tensors], Tensors]:
        """State to what the function gives, with weights and settings as they are now."""
        fixed = self._fixed(weights, settings, kept)

        def run(state: Tensors) -> Tensors:
            call, given, _ = self._ready([*fixed, *state])
            results, state = iter(call(list(given))), given[len(fixed) :]
            return [next(results) if place is None else state[place] for place in self._in_place]

        return run

    def loop(self, weights: Tensors, settings: Tensors, kept: Kept, state: Tensors) -> Tensors:
        """What the state is once the function says not to go on, after one run at least."""
        fixed = self._fixed(weights, settings, kept)
        state = [each.clone() if place in self._written else each for place, each in enumerate(state)]
        call, given, strides = self._ready([*fixed, *state])
        moved = [(place, found) for place, found in enumerate(self._in_place[1:]) if found != place]
        while True:
            more, *results = call(list(given))
            if moved:
                others, state = iter(results), given[len(fixed) :]
                for place, found in moved:
                    given[len(fixed) + place] = next(others) if found is None else state[found]
                given = _laid_out(given, strides)
            if not more:
                return given[len(fixed) :]

    def _fixed(self, weights: Tensors, settings: Tensors, kept: Kept) -> Tensors:
        """What is the same in every run for as long as weights and settings are."""
        made = kept.of(self._names, weights)
        if any(expression not in made for expression in self._made):
            made.update(zip(self._made, self._make(*weights), strict=True))
        return self._once(*weights, *settings, *(made[expression] for expression in self._made))

    def _ready(self, given: Tensors) -> tuple[Callable[[Tensors], Tensors], Tensors, Strides | None]:
        """What runs the step, its arguments as it takes them, fixed ones and the state, and the strides it is sure of."""
        import torch

        if not self._compiled:
            return lambda given: self._step(*given), given, None
        threads = torch.get_num_threads()  # of which compiled code is sure, too
        if threads not in self._runs:
            self._runs[threads] = inductor.compiled(self._step, given), [each.stride() for each in given]
        run, strides = self._runs[threads]
        return run, _laid_out(given, strides), strides


def _laid_out(tensors: Tensors, strides: Strides | None) -> Tensors:
    """The tensors with these strides, copied where they have others."""
    import torch

    if strides is None or all(each.stride() == was for each, was in zip(tensors, strides, strict=True)):
        return tensors
    return [
        each
        if each.stride() == was
        else torch.empty_strided(each.shape, was, dtype=each.dtype, device=each.device).copy_(each)
        for each, was in zip(tensors, strides, strict=True)
    ]


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

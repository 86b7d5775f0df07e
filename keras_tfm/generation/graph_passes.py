"""torch: what a recorded graph of operations repeats or does in more calls than it needs, taken out of it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any


def is_in_place(node: Any) -> bool:
    """Whether a node's operation overwrites an argument."""
    return node.op == "call_function" and hasattr(node.target, "_schema") and node.target._schema.is_mutable


def is_random(node: Any) -> bool:
    """Whether a node's operation draws numbers."""
    import torch

    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def merge_equal(graph: Any) -> None:
    """Let equal operations of equal arguments be one, and the same written twice to the same places be written once."""
    found: dict[Any, Any] = {}
    overwritten = _overwritten(graph)
    for node in list(graph.nodes):
        if _writes_again(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        if node.op != "call_function" or is_in_place(node) or is_random(node) or node in overwritten:
            continue
        try:
            key = (node.target, _hashable(node.args), _hashable(node.kwargs))
            first = found.setdefault(key, node)
        except TypeError:
            continue
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _writes_again(node: Any) -> bool:
    """Whether a node copies to a tensor what the operation that made it has just copied there."""
    import torch

    copy = torch.ops.aten.index_copy_.default
    if node.op != "call_function" or node.target is not copy or node.args[0].target is not copy:
        return False
    before = node.args[0]
    others = [user for user in before.users if user is not node and is_in_place(user) and user.args[0] is before]
    return not others and before.args[1:] == node.args[1:] and before.kwargs == node.kwargs


def replace(node: Any, by: Any) -> None:
    """Let what uses a node use another, whose strides may differ: views of it become reshapes."""
    import torch

    for user in list(node.users):
        if user.target is torch.ops.aten.view.default:
            user.target = torch.ops.aten.reshape.default
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def is_new(node: Any) -> bool:
    """Whether a node is memory of its own, all of it: no input, and no view, whose place in a tensor is another matter."""
    made = node.args[0] if node.target is operator.getitem else node
    schema = getattr(made.target, "_schema", None)
    return schema is not None and all(part.alias_info is None for part in schema.returns)


def fixed_first(graph: Any, changing: set[Any]) -> None:
    """Move what does not change in front of what does."""
    first = next(node for node in graph.nodes if node in changing and node.op == "call_function")
    for node in list(graph.nodes):
        if node not in changing and node.op in ("call_function", "get_attr"):
            first.prepend(node)


def changing_nodes(graph: Any, state: Sequence[Any]) -> set[Any]:
    """The nodes whose values differ from step to step: what the state has a part in, what is overwritten, what is drawn."""
    changing, overwritten = set(state), _overwritten(graph)
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if is_in_place(node) or is_random(node) or node in overwritten or changing & set(node.all_input_nodes):
            changing.add(node)
    return changing


def expressions(graph: Any, names: dict[Any, Any], changing: set[Any]) -> dict[Any, Any]:
    """Nodes that are made of some inputs alone, to what says how; equal in two graphs where they are made alike.

    Args:
        names: The inputs' nodes to what tells them apart, in all graphs.
        changing: Nodes that are not counted among them.
    """
    found: dict[Any, Any] = {node: ("input", name) for node, name in names.items()}
    for node in graph.nodes:
        used = node.all_input_nodes
        if node.op != "call_function" or node in changing or not used or any(each not in found for each in used):
            continue
        try:
            found[node] = (node.target, _hashable(node.args, found), _hashable(node.kwargs, found))
        except TypeError:
            continue
    return found


def memory_of(node: Any) -> Any:
    """The node whose memory a node is or has a part of: itself, where it made its own."""
    while True:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not node.args or len(schema.returns) != 1 or not schema.arguments:
            return node
        alias, first = schema.returns[0].alias_info, schema.arguments[0].alias_info
        if alias is None or first is None or not alias.before_set & first.before_set:
            return node
        node = node.args[0]


def overwritten_input(node: Any, inputs: Sequence[Any]) -> int | None:
    """Which of the inputs a node is, once it was overwritten: the whole of it, in the same order; None for none of them."""
    found = memory_of(node)
    if found not in inputs:
        return None
    shapes = []
    for value in (node.meta.get("val"), found.meta.get("val")):
        if value is None:
            return None
        shapes.append((value.shape, value.stride(), value.storage_offset(), value.dtype))
    return list(inputs).index(found) if shapes[0] == shapes[1] else None


def _overwritten(graph: Any) -> set[Any]:
    """Nodes that an operation overwrites, and those that they are views of."""
    found: set[Any] = set()
    for node in reversed(graph.nodes):
        if is_in_place(node):
            found.add(node.args[0])
        elif node in found and node.op == "call_function":  # it may be a view of an argument
            found.update(node.all_input_nodes)
    return found


def _hashable(tree: Any, nodes: dict[Any, Any] | None = None) -> Any:
    """A tree of arguments as a key; of nodes what stands for them, where they have something."""
    if isinstance(tree, (list, tuple)):
        return (type(tree).__name__, *(_hashable(part, nodes) for part in tree))
    if isinstance(tree, dict):
        return tuple(sorted((name, _hashable(part, nodes)) for name, part in tree.items()))
    hash(tree)
    if nodes and tree in nodes:
        return nodes[tree]
    return (type(tree).__name__, tree)  # 1 and 1.0 and True are not the same

"""torch: what is taken out of recorded graphs changes no result."""

from __future__ import annotations

import types

import pytest

from keras_tfm.ops.backend import NAME

if NAME != "torch":
    pytest.skip("graphs of torch", allow_module_level=True)

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from keras_tfm.generation import graph_passes, inductor
from keras_tfm.generation.recorded import Kept, Recorded
from tests.generation.graphs import count, random, record

aten = torch.ops.aten


def merged(function, *examples):
    module = make_fx(function)(*examples)
    graph_passes.merge_equal(module.graph)
    module.recompile()
    return module


def test_the_same_written_twice_is_written_once():
    def function(into, place, value):
        once = into.index_copy_(0, place, value)
        before = once > 0
        again = once.index_copy_(0, place, value)
        return before, again > 0, again

    place, value = torch.tensor([2]), random(1)
    module = merged(function, torch.zeros(4), place, value)
    assert count(module, aten.index_copy_.default) == 1
    assert count(module, aten.gt.Scalar) == 1
    for given, wanted in zip(module(torch.zeros(4), place, value), function(torch.zeros(4), place, value), strict=True):
        assert torch.equal(given, wanted)


@pytest.mark.parametrize("between", ["another place", "another operation"])
def test_what_is_written_over_in_between_is_written_again(between):
    def function(into, place, value):
        once = into.index_copy_(0, place, value)
        if between == "another place":
            once = once.index_copy_(0, place + 1, value)
        else:
            once.add_(1.0)
        return (once.index_copy_(0, place, value), once.index_copy_(0, place + 1, 2 * value))

    place, value = torch.tensor([1]), random(1)
    module = merged(function, torch.zeros(4), place, value)
    for given, wanted in zip(module(torch.zeros(4), place, value), function(torch.zeros(4), place, value), strict=True):
        assert torch.equal(given, wanted)


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_of_one_query_as_sums_gives_the_same(queries, masked):
    def function(query, key, value, mask):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            given = mask if masked else None
            output = torch.nn.functional.scaled_dot_product_attention(query, key, value, given, scale=0.3)
        return output.transpose(1, 2).reshape(2, -1)

    examples = [random(2, 3, queries, 8), random(2, 3, 5, 8), random(2, 3, 5, 8), random(2, 1, queries, 5)]
    examples[3][1, :, :, 3:] = -torch.inf
    with torch.no_grad():
        module = make_fx(function)(*examples)
    kernel = aten._scaled_dot_product_flash_attention_for_cpu.default
    module.graph.eliminate_dead_code()
    assert count(module, kernel) == 1
    inductor.attention_as_sums(module.graph)
    module.recompile()
    assert count(module, kernel) == (queries > 1)
    torch.testing.assert_close(module(*examples), function(*examples))


@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax])
@pytest.mark.parametrize("axis", [0, -1])
def test_softmaxes_have_no_denormal_parts(function, axis):
    scores = 60 * random(7, 9)
    scores[2, 3] = scores[6] = -torch.inf
    scores[0, 1] = 300.0
    with torch.no_grad():
        module = make_fx(lambda x: function(x, axis))(scores)
    inductor.without_denormals(module.graph)
    module.recompile()
    assert count(module, aten._softmax.default) + count(module, aten._log_softmax.default) == 0
    found, wanted = module(scores), function(scores, axis)
    torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-25, equal_nan=True)
    if function is torch.softmax:
        assert not ((found != 0) & (found < 1e-30)).any()
        assert ((wanted != 0) & (wanted < 1e-30)).any()


@pytest.mark.parametrize("rows", [1, 4])
def test_a_bias_is_added_behind_the_product(rows):
    x, weight, bias = random(rows, 6), random(6, 5), random(5)

    def function(x, weight, bias):
        plain = torch.addmm(bias, x, weight)
        half = torch.addmm(bias.bfloat16(), x.bfloat16(), weight.bfloat16())
        return plain.view(-1), half, torch.addmm(bias, x, weight, beta=2)

    module = make_fx(function)(x, weight, bias)
    inductor.bias_apart(module.graph)
    module.recompile()
    assert count(module, aten.addmm.default) == 2  # of bfloat16, where it would be rounded twice, and of a scaled bias
    torch.testing.assert_close(module(x, weight, bias), function(x, weight, bias))


def rows_of_all_kinds(x, wide, weight):
    """Products of one row, and whether it is memory of its own."""
    y, (normed, *_) = torch.tanh(x), torch.native_layer_norm(x, (6,), None, None, 1e-5)
    parts = wide.cos()
    return [
        (y.view(1, 6) @ weight, True),
        (normed.view(1, 6) @ weight, True),
        (y[:, 0] @ weight, False),
        (y.expand(2, 1, 6).reshape(2, 6) @ weight, False),
        (torch.cos(x.view(2, 3)).view(1, 6) @ weight, False),
        (parts[:, 6:].view(1, 1, 6).view(1, 6) @ weight, False),
        (parts.split(6, 1)[1].view(1, 1, 6).view(1, 6) @ weight, False),
        (parts.view(2, 1, 6)[1].view(1, 1, 6).view(1, 6) @ weight, False),
        (wide[:, 6:].view(1, 1, 6).view(1, 6) @ weight, False),
    ]


def test_a_single_row_is_taken_as_one_of_a_matrix():
    examples, taken = (random(1, 1, 6), random(1, 12), random(6, 5)), []

    def function(*arguments):
        results, taken[:] = zip(*rows_of_all_kinds(*arguments), strict=True)
        return list(results)

    module = make_fx(function)(*examples)
    inductor.one_row(module.graph)
    module.recompile()
    products = [node for node in module.graph.nodes if node.target is aten.mm.default]
    assert [node.args[0].target is aten.as_strided.default for node in products] == taken
    torch.testing.assert_close(module(*examples), function(*examples))


def test_compiled_products_of_rows_of_all_kinds_are_the_plain_ones():
    def function(weights, state, settings):
        return [product for product, _ in rows_of_all_kinds(*state, *weights)]

    weights, state = [random(6, 5)], [random(1, 1, 6), random(1, 12)]
    program = record(function, weights, state, compiled=True)
    for scale in (1.0, -0.5):
        now = [scale * each for each in state]
        torch.testing.assert_close(program.bound(weights, [], Kept())(now), function(weights, now, []))


def test_the_tanh_gelu_is_no_less_exact_by_a_sigmoid():
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e20, -1e20])])
    gelu = torch.nn.functional.gelu
    module = make_fx(lambda x: (gelu(x, approximate="tanh"), gelu(x)))(x)
    inductor.gelu_by_sigmoid(module.graph)
    module.recompile()
    assert count(module, aten.gelu.default) == 1  # the exact one
    found, other = module(x)
    torch.testing.assert_close(found.double(), gelu(x.double(), approximate="tanh"), rtol=2e-6, atol=1e-9)
    assert torch.equal(other, gelu(x))


def summed(weights, state, settings):
    x, y = torch.tanh(state[0]), state[0] + 1
    return [x @ weights[0] - x @ weights[1], y @ weights[1] - y @ weights[0]]


def test_what_is_made_of_weights_is_made_once_for_a_text():
    weights, states = [random(8, 6), random(8, 6)], [[random(rows, 8)] for rows in (1, 5)]
    programs = [record(summed, weights, state) for state in states]
    made = []
    for program in programs:
        program._make = lambda *weights, make=program._make: made.append(1) or make(*weights)
    kept = Kept()

    def check(times):
        made.clear()
        for program, state in zip(programs, states, strict=True):
            assert len(program._made) == 2
            torch.testing.assert_close(program.bound(weights, [], kept)(state), summed(weights, state, []))
        assert len(made) == times

    check(1)
    check(0)
    weights[1].mul_(2.0)
    check(1)
    weights[0] = random(6, 8).T.contiguous()
    check(1)
    kept = Kept()
    check(1)
    with torch.inference_mode():  # whose tensors do not count what is written to them
        weights[:] = [weight.clone() for weight in weights]
        check(2)
        weights[0].mul_(3.0)
        check(2)


def test_nothing_is_made_for_what_runs_once():
    program = record(summed, [random(8, 6), random(8, 6)], [random(2, 8)], repeated=False)
    assert count(program._step, aten.mm.default) == 4
    assert not program._made


def test_what_draws_numbers_of_weights_is_not_kept():
    def function(weights, state, settings):
        return [torch.bernoulli(weights[0].sigmoid()) + state[0]]

    weights, state, kept = [random(40)], [torch.zeros(40)], Kept()
    program = record(function, weights, state)
    assert [node.target for node in program._make.graph.nodes if node.op == "call_function"] == [aten.sigmoid.default]
    found = [program.bound(weights, [], kept)(state)[0] for _ in range(2)]
    assert not torch.equal(*found)


def test_what_is_overwritten_is_not_returned_by_the_step():
    def function(weights, state, settings):
        kept, turned, other = state
        kept.view(2, 6)[:, 1].add_(weights[0][0, 0])
        return [kept.view(2, 6).view(3, 4), turned.add_(1.0).T, other * 2, kept]

    weights = [random(2, 2)]

    def state():
        return [random(3, 4), random(2, 3), random(5)]

    program = record(function, weights, state())
    assert program._in_place == [0, None, None, 0]
    given = state()
    results = program.bound(weights, [], Kept())(given)
    assert results[0] is given[0] is results[3]
    torch.testing.assert_close(results, function(weights, state(), []))


def turning(weights, state, settings):
    """A loop with every kind of next state: made, a view of that, left alone, overwritten, without a state."""
    first, second, same, cache, square, fixed, count = state
    cache.index_copy_(0, count.view(1), (first + weights[0]).view(1, 4))
    more = torch.logical_and(count + 1 < settings[0], torch.logical_not((fixed > 1e6).any()))
    made, viewed = second * 2 - cache[0], (first - same.sum()).view(2, 2).view(4)
    return [more, made, viewed, same, cache, square + first[0], weights[1].T * settings[1], count + 1]


def exchanging(weights, state, settings):
    """The same, where next states are other ones, and parts of others, too."""
    more, _, _, _, cache, square, *others = turning(weights, state, settings)
    return [more, state[1], state[0], state[3][1, :3], cache, square.T, *others]


def turning_arguments():
    weights = [random(4), random(3, 2)]
    state = [random(4), 2 * random(4), random(3), random(6, 4), random(3, 3), random(2, 3)]
    state.append(torch.tensor(1))
    return weights, state, [torch.tensor(5), torch.tensor(2.0)]


@pytest.mark.parametrize("function", [turning, exchanging])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_loop_leaves_what_it_is_given_and_gives_the_last_state(function, compiled):
    weights, state, settings = turning_arguments()
    program = Recorded(function, [0, 1], weights, state, settings, loops=True, compiled=compiled)
    assert program._written == ([0, 1, 4, 5, 6] if compiled and function is turning else [])
    if compiled and function is turning:
        assert program._in_place == [None, *range(7)]
        tensors = [node for node in program._step.graph.nodes if node.op == "placeholder"]
        assert len(tensors) == len(state) + 3  # all that is fixed, of two dtypes, and what is laid out in another order
    for times, scale in ((5, 1.0), (2, -0.5), (4, 2.0)):
        now = [scale * each for each in weights]
        if scale == -0.5:  # laid out in another order
            now[1] = now[1].T.contiguous().T
        _, state, settings = turning_arguments()
        settings[0].fill_(times)
        wanted = [each.clone() for each in state]
        while True:
            more, *wanted = (each.clone() for each in function(now, wanted, settings))
            if not more:
                break
        before = [each.clone() for each in state]
        found = program.loop(now, settings, Kept(), list(state))
        torch.testing.assert_close(found, wanted)
        assert int(found[-1]) == times
        for place, (given, was) in enumerate(zip(state, before, strict=True)):
            assert torch.equal(given, was) == (place != 3)  # the cache is overwritten in place
        assert found[3] is state[3]


def test_a_state_in_another_order_is_laid_out():
    weights, state, settings = turning_arguments()
    program = Recorded(turning, [0, 1], weights, state, settings, loops=True, compiled=True)
    first = program.loop(weights, settings, Kept(), [each.clone() for each in state])
    other = [each.clone() for each in state]
    other[3] = other[3].T.contiguous().T
    torch.testing.assert_close(program.loop(weights, settings, Kept(), other), first)


def test_small_fixed_tensors_are_given_as_one():
    def function(weights, state, settings):
        matrix, bias, scale, halves, picture = weights
        x = torch.tanh(state[0]) @ matrix + bias
        return [x * scale, x.bfloat16() * halves, picture.T + x[:, :5], bias * 2]

    weights = [random(8, 6), random(6), random(1, 6), random(6).bfloat16(), random(5, 3)[:, :2]]
    state = [random(2, 8)]
    program = record(function, weights, state, compiled=True)
    names = [node.name for node in program._step.graph.nodes if node.op == "placeholder"]
    assert len(names) == 6, (
        names
    )  # the matrix, the turned one, a result, those of float32, those of bfloat16, the state
    for scale in (1.0, -2.0):
        now = [scale * each for each in weights]
        torch.testing.assert_close(program.bound(now, [], Kept())(state), function(now, state, []))


def test_large_results_are_returned_and_not_written_over(monkeypatch):
    monkeypatch.setattr(inductor, "SMALL", 16)
    weights, state, settings = turning_arguments()
    program = Recorded(turning, [0, 1], weights, state, settings, loops=True, compiled=True)
    assert program._written == [0, 1, 6]
    assert program._in_place == [None, 0, 1, 2, 3, None, None, 6]
    wanted = Recorded(turning, [0, 1], weights, state, settings, loops=True)
    other = turning_arguments()[1]
    found = program.loop(weights, settings, Kept(), state)
    torch.testing.assert_close(found, wanted.loop(weights, settings, Kept(), other))


@pytest.mark.parametrize("compiled", [False, True])
def test_whether_to_go_on_may_be_a_part_of_the_state(compiled):
    def function(weights, state, settings):
        going, count = state
        going.logical_and_(count + 1 < settings[0])
        return [going, going, count + weights[0]]

    weights, state, settings = [torch.tensor(1)], [torch.tensor(True), torch.tensor(0)], [torch.tensor(4)]
    program = Recorded(function, [0], weights, state, settings, loops=True, compiled=compiled)
    found = program.loop(weights, settings, Kept(), [torch.tensor(True), torch.tensor(0)])
    assert [each.item() for each in found] == [False, 4]


@pytest.mark.parametrize(
    "around",
    [
        lambda run, x, y: run([x, y]),
        lambda run, x, y: run([y, x]),
        lambda run, x, y: run([x.clone(), y]),
        lambda run, x, y: [each.clone() for each in run([x, y])],
        lambda run, x, y: [x, *run([x, y])],
    ],
    ids=["nothing", "another order", "another argument", "other results", "more results"],
)
def test_code_is_run_by_itself_where_nothing_is_around_it(around, request):
    code = types.SimpleNamespace(current_callable=lambda given: [given[0] + given[1], 2 * given[1]])
    run = inductor.Unwrapped(lambda x, y: around(lambda given: code.current_callable(given), x, y), code)
    plain = code.current_callable
    for scale in (1.0, 2.0, 3.0):
        x, y = scale * random(3), random(3) - scale
        torch.testing.assert_close(run([x, y]), around(plain, x, y))
        assert code.current_callable is plain
        assert (run._run is plain) == (request.node.callspec.id == "nothing")


def test_code_is_compiled_for_as_many_threads_as_there_are():
    def function(weights, state, settings):
        return [(state[0] * weights[0]).argmax()[None], (state[0] + weights[0]).sum()[None]]

    weights, state, before = [random(40000)], [2 * random(40000)], torch.get_num_threads()
    program = record(function, weights, state, compiled=True)
    try:
        for threads in (2, 6, 2):  # code for fewer would write behind its arrays
            torch.set_num_threads(threads)
            torch.testing.assert_close(program.bound(weights, [], Kept())(state), function(weights, state, []))
        assert set(program._runs) == {2, 6}
    finally:
        torch.set_num_threads(before)

"""torch: products of few rows give the same in every way that a processor may want them."""

from __future__ import annotations

import pytest

from keras_tfm.ops.backend import NAME

if NAME != "torch":
    pytest.skip("graphs of torch", allow_module_level=True)

import torch

from keras_tfm.generation import products
from keras_tfm.generation.recorded import Kept
from tests.generation.graphs import count, random, record

aten = torch.ops.aten
ASKED = products.is_slow_library
ONEDNN = torch.ops.mkldnn._linear_pointwise.default


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    """Not an AMD processor, unless a test says so."""
    monkeypatch.setattr(products, "is_slow_library", lambda: False)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_products_of_one_input_are_one_product(rows, bias):
    weights = [random(8, 6), random(8, 4), random(8, 6)] + ([random(6), random(4), random(6)] if bias else [])

    def function(weights, state, settings):
        x = torch.tanh(state[0])
        parts = (
            [x @ w for w in weights[:3]]
            if not bias
            else [torch.addmm(b, x, w) for w, b in zip(weights[:3], weights[3:], strict=True)]
        )
        first, second, third = parts
        return [first.view(rows, 2, 3).transpose(0, 1), second.view(-1), third * 2, first + third]

    state = [random(rows, 8)]
    program = record(function, weights, state)
    kind = aten.addmm.default if bias else aten.mm.default
    assert count(program._step, kind) == 1
    for scale in (1.0, 3.0):  # weights as they are now
        now = [scale * weight for weight in weights]
        for given, wanted in zip(program.bound(now, [], Kept())(state), function(now, state, []), strict=True):
            assert given.shape == wanted.shape
            torch.testing.assert_close(given, wanted)


def test_products_that_are_not_alike_stay():
    def function(weights, state, settings):
        x, y = state[0] * 2, state[0] * 3
        wide, other, own = weights
        return [x @ wide, y @ other, y @ (own + y.sum()), x.double() @ other.double(), (x + 1) @ wide]

    weights, state = [random(8, 6), random(8, 4), random(8, 4)], [random(3, 8)]
    program = record(function, weights, state)
    assert count(program._step, aten.mm.default) == 5
    for given, wanted in zip(program.bound(weights, [], Kept())(state), function(weights, state, []), strict=True):
        torch.testing.assert_close(given, wanted)


def test_large_products_stay(monkeypatch):
    def function(weights, state, settings):
        x = state[0] + 1
        return [x @ weight for weight in weights]

    weights, state = [random(8, 6), random(8, 6), random(8, 7)], [random(3, 8)]
    monkeypatch.setattr(products, "SMALL", 8 * 6 * 4)
    program = record(function, weights, state)
    assert count(program._step, aten.mm.default) == 2


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16, 17])
@pytest.mark.parametrize("copied", [True, False])
def test_transposed_matrices_of_few_rows_give_the_same(rows, copied, monkeypatch):
    if not copied:
        monkeypatch.setattr(products, "COPIED", 0)

    def function(weights, state, settings):
        product = (state[0] + 1) @ weights[0].T
        return [product.view(rows, 2, 5), product.view(-1), product.argmax(-1)]

    weights, state = [random(10, 6)], [random(rows, 6)]
    program = record(function, weights, state)
    (mm,) = (node for node in program._step.graph.nodes if node.target is aten.mm.default)
    made = aten.clone.default in [node.target for node in program._make.graph.nodes]
    assert made == (copied and 3 <= rows <= 16)
    turned = getattr(mm.args[0], "target", None) is aten.permute.default or mm.args[0].op == "placeholder"
    assert turned == (not copied and rows in products.TURNED)
    for scale in (1.0, -2.0):
        now = [scale * weights[0]]
        for given, wanted in zip(program.bound(now, [], Kept())(state), function(now, state, []), strict=True):
            torch.testing.assert_close(given, wanted)


@pytest.fixture
def amd(processor, monkeypatch):
    """An AMD processor, on whatever this runs on."""
    monkeypatch.setattr(products, "is_slow_library", lambda: True)


def multiplying(weights, state, settings):
    """Products of rows of all kinds with matrices of all kinds, seven of them for oneDNN."""
    (wide, table, bias, own), (x, place) = weights, state
    x = torch.tanh(x)
    return [
        x @ wide,
        (x * 4) @ table.T,
        torch.addmm(bias, x, wide[:, :6]),
        x.view(1, -1).expand(4, -1).reshape(-1, x.shape[1]) @ wide,
        x.T.contiguous().T @ wide,
        x[:1].expand(5, -1) @ wide,
        (x * 2)[:, :3] @ wide[2:5, 1:7],
        # As they were: steps over columns, a matrix that changes, another dtype, a bias of two dimensions.
        (x * 5) @ wide[:, ::2],
        (x * 3) @ bias.expand(8, 6),
        x @ (own + place),
        x.double() @ wide.double(),
        torch.addmm(x[:, :6] * 2, x, wide[:, :6]),
    ]


def multiplied(rows: int):
    weights = [random(8, 11), random(10, 8), random(6), random(8, 3)]
    weights[1] = random(5, 10, 8)[2]
    return weights, [random(rows, 8), torch.tensor(1.5)]


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
@pytest.mark.parametrize("compiled", [False, True])
def test_products_of_an_amd_processor_give_the_same(rows, compiled, amd):
    weights, state = multiplied(rows)
    program = record(multiplying, weights, state, compiled=compiled)
    for scale in (1.0, -0.5):
        now = [scale * each for each in weights]
        torch.testing.assert_close(program.bound(now, [], Kept())(state), multiplying(now, state, []))


def test_plain_products_of_an_amd_processor_are_onednns_without_copies(amd):
    program = record(multiplying, *multiplied(3))
    assert count(program._step, ONEDNN) == 7
    assert count(program._step, aten.mm.default) == 4
    assert count(program._step, aten.addmm.default) == 1
    assert aten.clone.default not in [node.target for node in program._make.graph.nodes]


def projecting(weights, state, settings):
    x = torch.tanh(state[0])
    return [torch.addmm(weights[2], x, weights[0]), (x + 1) @ weights[1].T]


@pytest.mark.parametrize(
    ("rows", "copied", "sums", "made"), [(1, True, 2, 1), (4, True, 8, 1), (4, False, 4, 0), (5, True, 0, 0)]
)
def test_compiled_products_of_few_rows_are_sums_on_an_amd_processor(rows, copied, sums, made, amd, monkeypatch):
    if not copied:
        monkeypatch.setattr(products, "COPIED", 0)
    program = record(projecting, [random(8, 6), random(7, 8), random(6)], [random(rows, 8)], compiled=True)
    assert count(program._step, aten.sum.dim_IntList) == sums
    assert count(program._step, aten.mm.default) == 0
    assert count(program._step, products.linear()) == 2 - sums // rows
    assert [node.target for node in program._make.graph.nodes].count(aten.clone.default) == made


def test_joined_products_of_an_amd_processor_are_one(amd):
    def function(weights, state, settings):
        x = state[0] + 1
        return [torch.addmm(bias, x, weight) for weight, bias in zip(weights[::2], weights[1::2], strict=True)]

    weights, state = [random(8, 6), random(6), random(8, 4), random(4)], [random(3, 8)]
    program = record(function, weights, state)
    assert count(program._step, ONEDNN) == 1
    torch.testing.assert_close(program.bound(weights, [], Kept())(state), function(weights, state, []))


@pytest.mark.parametrize(
    ("name", "mkl", "expected"),
    [
        ("AMD EPYC", True, True),
        ("Intel(R) Xeon(R) Processor", True, False),
        ("AMD EPYC", False, False),
        (None, True, False),
    ],
)
def test_the_processor_is_asked_for_its_name(name, mkl, expected, monkeypatch):
    found = dict(cpu_name=name) if name else {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert ASKED.__wrapped__() is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert ASKED.__wrapped__() is False

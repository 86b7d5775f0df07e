"""The rule that splits weights, on meshes that need not be there."""

import pytest

from keras_tfm.distribution.rules import SMALLEST, Rules

pytestmark = pytest.mark.once

KERNEL = ("embed", "heads", "head_dim")


def test_heads_are_split_and_the_rest_along_its_largest_dimension():
    rules = Rules({"data": 4, "model": 8}, {"heads": "model"}, rest="data")
    assert rules.spec("query/kernel", (512, 16, 64), KERNEL) == ("data", "model", None)
    assert rules.shard("query/kernel", (512, 16, 64), KERNEL) == (128, 2, 64)


def test_small_and_unknown_variables_stay_whole():
    rules = Rules({"data": 4}, rest="data")
    assert rules.spec("small", (SMALLEST // 8, 4), ("embed", None)) == (None, None)
    assert rules.spec("seed", (2 * SMALLEST,), None) == (None,)


def test_what_does_not_divide_raises_or_stays():
    with pytest.raises(ValueError, match=r"q: its dimension 1 \(heads\) has 6 entries"):
        Rules({"model": 4}, {"heads": "model"}).spec("q", (32, 6, 8), KERNEL)
    whole = Rules({"model": 4}, {"heads": "model"}, whole_if_uneven=("heads",))
    assert whole.shard("q", (32, 6, 8), KERNEL) == (32, 6, 8)

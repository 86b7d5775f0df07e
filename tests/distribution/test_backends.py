"""Where there are no layouts, this is said."""

import keras
import pytest
from helpers import BACKEND

from keras_tfm import distribution


@pytest.mark.skipif(BACKEND == "jax", reason="which has them")
@pytest.mark.parametrize("make", [distribution.mesh, distribution.data_parallel, distribution.tensor_parallel])
def test_other_backends_are_told(make):
    with pytest.raises(ValueError, match=f"on JAX alone; this is {BACKEND}"):
        make()


def test_on_one_device_everything_is_whole():
    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    model = keras.Sequential([keras.Input((2,)), layer])
    report = distribution.layout_report(model)
    assert [(p.shape, p.shard, p.spec, p.bytes) for p in report.placements] == [
        ((2, 3), (2, 3), (None, None), 24),
        ((3,), (3,), (None,), 12),
    ]
    assert report.bytes == report.whole_bytes == 36
    distribution.check_placed(model)

"""Sizes as people write them."""

import pytest

from keras_tfm.planning.units import bytes_of, count, said

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("80GiB", 80 * 2**30),
        ("80 GB", 80 * 10**9),
        ("80G", 80 * 10**9),
        ("1.5 TiB", 3 * 2**39),
        ("512", 512),
        ("16 mib", 16 * 2**20),
        (1024, 1024),
    ],
)
def test_decimal_and_binary_units_differ(size, expected):
    assert bytes_of(size) == expected


@pytest.mark.parametrize(
    "size", ["", "GB", "-3 GB", "80 giga", "80 GiBB", 0, -1, None, True, float("nan"), float("inf")]
)
def test_no_size(size):
    with pytest.raises(ValueError, match="room must be bytes"):
        bytes_of(size, "room")


def test_said_and_counted():
    assert said(80 * 2**30) == "80.0 GiB"
    assert said(12) == "12 B"
    assert count(124_439_808) == "124.4 M"

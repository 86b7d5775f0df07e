"""Models of images: a ViT trained, saved, and refused what it cannot read."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import assert_close, fill_weights, normal, numpy

import keras_tfm as tfm
from keras_tfm.ops.backend import without_allocating

TINY = dict(num_layers=1, hidden_dim=16, num_heads=2, image_size=[12, 8], patch_size=4)
IMAGES = normal(3, 12, 8, 3)


def tiny(**options) -> tfm.Backbone:
    return fill_weights(tfm.models.vit(**{**TINY, **options}))


def lamps(rows: int) -> tuple[np.ndarray, list[str]]:
    """Images of noise with one bright patch, and in which half it is."""
    rng = np.random.default_rng(0)
    images = 0.3 * rng.normal(size=(rows, 12, 8, 3)).astype("float32")
    across, down = rng.integers(0, 2, rows), rng.integers(0, 3, rows)
    for image, x, y in zip(images, across, down, strict=True):
        image[4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += 1.0
    return images, [("left", "right")[x] for x in across]


@pytest.mark.parametrize(
    ("size", "patch_size", "count"),  # with a head of 1,000 classes; torchvision's numbers
    [
        ("base", 16, 86_567_656),
        ("base", 32, 88_224_232),
        ("large", 16, 304_326_632),
        ("large", 32, 306_535_400),
        ("huge", None, 632_045_800),
    ],
)
def test_published_parameter_counts(size, patch_size, count):
    options = {} if patch_size is None else {"patch_size": patch_size}
    with without_allocating():
        assert tfm.ImageClassifier(tfm.models.vit(size, **options), num_classes=1000).count_params() == count


def test_patches_are_those_of_a_convolution():
    layer = tfm.layers.PatchEmbedding(5, (4, 2))
    layer(IMAGES)
    fill_weights(layer)
    kernel = numpy(layer.projection.kernel).reshape(4, 2, 3, 5)
    expected = keras.ops.conv(IMAGES, kernel, strides=(4, 2), padding="valid") + layer.projection.bias
    got = numpy(layer(IMAGES))
    assert_close(got[:, 1:], numpy(expected).reshape(3, -1, 5))
    assert_close(got[:, 0], np.broadcast_to(numpy(layer.class_vector), (3, 5)))


def test_it_learns_saves_and_reloads(tmp_path):
    images, names = lamps(1000)
    keras.utils.set_random_seed(0)
    model = tfm.ImageClassifier(tfm.models.vit(**TINY, initializer_range=0.1), labels=["left", "right"])
    model.compile(keras.optimizers.Adam(3e-3))
    model.fit(images[:800], names[:800], epochs=4, batch_size=16, verbose=0)
    accuracy = model.evaluate(images[800:], np.array(names[800:]), verbose=0)[1]
    assert accuracy > 0.9, accuracy

    expected = model.predict(images[:5], verbose=0)
    model.save(tmp_path / "vit.keras")
    again = keras.models.load_model(tmp_path / "vit.keras")
    assert_close(again.predict(images[:5], verbose=0), expected)
    assert again.labels == ["left", "right"]

    model.save_pretrained(tmp_path / "vit")
    again = tfm.from_pretrained(tmp_path / "vit")
    assert isinstance(again, tfm.ImageClassifier)
    assert again.labels == ["left", "right"]
    assert_close(again.predict(images[:5], verbose=0), expected)


def test_pooling_without_a_class_token():
    backbone = tiny(patch_embedding={"class_token": False})
    assert backbone(IMAGES)["sequence_output"].shape == (3, 6, 16)
    model = fill_weights(tfm.ImageClassifier(backbone, num_classes=4))
    assert model.pooling == "mean"
    other = fill_weights(tfm.ImageClassifier(tiny(pooler=True), pooling="pooler"))
    assert other(IMAGES).shape == (3, 2)
    with pytest.raises(ValueError, match="cannot express"):
        model.save_pretrained("never")


def test_scores_and_other_positions():
    backbone = tiny(position="rotary")
    assert [tuple(scores.shape) for scores in backbone.attention_scores(IMAGES)] == [(3, 2, 7, 7)]
    assert tiny(position="sinusoidal").position_embedding.kind == "sinusoidal"


def test_half_precision_takes_the_same_images():
    model = tfm.ImageClassifier(tiny(dtype="mixed_bfloat16"))
    assert np.isfinite(numpy(model(IMAGES))).all()
    assert numpy(model({"images": IMAGES.astype("float64")})).shape == (3, 2)


def classifier() -> tfm.ImageClassifier:
    return tfm.ImageClassifier(tiny())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: classifier()((IMAGES * 255).astype("uint8")), r"must be float, scaled.*/ 127.5 - 1; got uint8"),
        (lambda: classifier()(IMAGES.transpose(0, 3, 1, 2)), r"\(batch, 12, 8, 3\).*Channels come last"),
        (lambda: classifier()(IMAGES[:, :8]), r"must be \(batch, 12, 8, 3\); got shape \(3, 8, 8, 3\)\."),
        (lambda: classifier()({"pixel_values": IMAGES}), "Did you mean 'images'"),
        (lambda: classifier().predict(["a.png", "b.png"]), "reads images, arrays of floats; got strings"),
        (
            lambda: tfm.ImageClassifier(tfm.models.bert("tiny")),
            "ImageClassifier reads images; this backbone reads tokens",
        ),
        (lambda: tfm.TextClassifier(tiny()), "TextClassifier reads tokens; this backbone reads images"),
        (lambda: tfm.MaskedLM(tiny()), "MaskedLM reads tokens"),
        (lambda: tfm.models.bert(tiny().config), "bert reads tokens"),
        (lambda: tfm.models.vit(tfm.models.bert("tiny").config), "vit reads images"),
        (lambda: tiny(image_size=30), "image_size=30 does not divide into patches of 4"),
        (lambda: tiny(image_size=0), "image_size must be a positive integer"),
        (lambda: tiny(patch_size=None), "patch_size must be a positive integer.*got None"),
        (lambda: tiny(num_channels=0), "num_channels must be a positive integer"),
        (lambda: tiny(vocabulary_size=5), "vocabulary_size belong to a model of tokens"),
        (lambda: tiny(max_sequence_length=9), "max_sequence_length belong to a model of tokens"),
        (
            lambda: tfm.models.bert("tiny", patch_size=4),
            "patch_size belong to a model of images, which needs image_size",
        ),
        (lambda: tfm.models.gpt("small", image_size=32, patch_size=4), "vocabulary_size.* belong to a model of tokens"),
        (lambda: tfm.ImageClassifier(tiny(), tokenizer=None), "no argument 'tokenizer'"),
        (lambda: tfm.layers.PatchEmbedding(8, (4, 4, 4)), r"or \(height, width\)"),
        (lambda: tfm.layers.PatchEmbedding(8, 5)(IMAGES), "do not divide into patches"),
        (lambda: tfm.layers.PatchEmbedding(8, 4)(IMAGES[0]), r"must be \(batch, height, width, channels\)"),
    ],
)
def test_what_it_cannot_read(broken, message):
    with pytest.raises(ValueError, match=message):
        broken()

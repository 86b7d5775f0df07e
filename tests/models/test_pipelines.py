"""Input pipelines beside `dataset`: examples in files, grain, `tf.data`, torch's loaders; all of them train the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND, fill_weights

import keras_tfm as tfm
from keras_tfm.data import write_examples

from .test_raw_data import TEXTS, TOKENIZER, batches, encoder

LABELS = [0, 1, 0, 1, 1, 0]


def classifier():
    model = fill_weights(tfm.TextClassifier(encoder(), num_classes=2, tokenizer=TOKENIZER), 0.1)
    model.compile(keras.optimizers.SGD(0.1))
    return model


def trained(model, data, **options):
    model.fit(data, verbose=0, shuffle=False, **options)
    return [np.asarray(keras.ops.convert_to_numpy(weight)) for weight in model.trainable_weights]


def expected():
    model = classifier()
    data = model.dataset(TEXTS, LABELS, batch_size=2, group_by_length=False)
    return trained(model, data, epochs=2)


def close(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_grain():
    grain = pytest.importorskip("grain")
    model = classifier()
    rows = grain.MapDataset.source(list(zip(TEXTS, LABELS, strict=True)))
    data = rows.batch(2, batch_fn=lambda rows: model.collate(*map(list, zip(*rows, strict=True))))
    x, y = data[0]
    assert x["token_ids"].shape[0] == 2
    assert y.tolist() == LABELS[:2]
    close(trained(model, data.repeat(2)), expected())
    loss = model.evaluate(data, verbose=0)[0]
    assert loss == pytest.approx(model.evaluate(TEXTS, np.array(LABELS), batch_size=2, verbose=0)[0], abs=1e-5)
    model.fit(data.to_iter_dataset(), validation_data=data, verbose=0)


def test_torch_loader():
    if BACKEND != "torch":
        pytest.skip("elsewhere Keras takes from a loader tensors of one length only")
    import torch

    model = classifier()
    rows = list(zip(TEXTS, LABELS, strict=True))
    loader = torch.utils.data.DataLoader(
        rows, 2, collate_fn=lambda rows: model.collate(*map(list, zip(*rows, strict=True)))
    )
    close(trained(model, loader, epochs=2), expected())


def test_tf_data():
    if BACKEND == "torch":
        pytest.skip("Keras takes tf.data on TensorFlow and JAX")
    pytest.importorskip("tensorflow")
    model = classifier()
    data = model.dataset(TEXTS, LABELS, batch_size=2, group_by_length=False).to_tf_data()
    assert len(data) == 3
    close(trained(model, data, epochs=2), expected())


def test_examples_in_files(tmp_path):
    model = classifier()
    rows = zip(TEXTS, LABELS, strict=True)
    mapped = write_examples(
        tmp_path / "texts", rows, lambda rows: model.examples(*map(list, zip(*rows, strict=True))), at_once=4
    )
    data = model.dataset(mapped, batch_size=2, group_by_length=False)
    close(trained(model, data, epochs=2), expected())
    np.testing.assert_allclose(model.predict(mapped, verbose=0), model.predict(TEXTS, verbose=0), atol=1e-5)
    model.fit(mapped, batch_size=2, validation_split=0.34, verbose=0)

    packed = write_examples(tmp_path / "packed", [0], lambda _: model.examples(TEXTS, LABELS, pack=16))
    ours = batches(model.dataset(packed, batch_size=8))
    theirs = batches(model.dataset(TEXTS, LABELS, pack=16, batch_size=8))
    for mine, other in zip(ours, theirs, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, mine, other)


def test_tokens_are_masked_anew_in_files(tmp_path):
    model = tfm.MaskedLM(encoder(pooler=False), tokenizer=TOKENIZER)
    mapped = write_examples(tmp_path / "texts", TEXTS, model.examples)
    data = model.dataset(mapped, batch_size=6, shuffle=True, seed=1)
    first = data[0][1]
    data.on_epoch_end()
    assert first.shape[0] == 6
    assert (first >= 0).any()
    assert not np.array_equal(np.sort(first, axis=None), np.sort(data[0][1], axis=None))
    model.fit(mapped, batch_size=3, verbose=0)


def test_collated_rows_keep_their_order():
    model = classifier()
    x, y = model.collate(TEXTS, LABELS)
    assert y.tolist() == LABELS
    for row, text in zip(x["token_ids"], TEXTS, strict=True):
        ids = TOKENIZER([text])["token_ids"][0]
        assert row[: len(ids)].tolist() == ids.tolist()
    again = model.collate(list(model.examples(TEXTS, LABELS)))  # dicts
    keras.tree.map_structure(np.testing.assert_array_equal, again, (x, y))
    assert len(model.collate(TEXTS)) == 1
    with pytest.raises(ValueError, match="no rows"):
        model.collate([])

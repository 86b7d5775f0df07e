"""Task models: logits, `fit` on arrays, datasets and strings, files, and labels that do not fit."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, numpy

import keras_tfm as tfm
from keras_tfm.models.language_models import shifted_labels

TINY = dict(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=40, max_sequence_length=32)
SHORT = {**TINY, "max_sequence_length": None}
IDS = np.random.default_rng(1).integers(1, 40, (6, 9)).astype("int32")
TEXTS = ["good", "bad bad bad bad", "very good", "so bad", "good good good", "a bad very bad"]
LABELS = [1, 0, 1, 0, 1, 0]


def make_tokenizer(**options):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "very", "so", "a"]
    base = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    base.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return tfm.data.Tokenizer(base, **options)


def classifier(**options):
    backbone = tfm.models.bert(**TINY, dropout=0.0)
    return tfm.TextClassifier(backbone, **{"num_classes": 2, "tokenizer": make_tokenizer(), **options})


def test_text_classifier_learns_from_strings():
    model = classifier(labels=["bad", "good"])
    model.compile(keras.optimizers.Adam(3e-3))
    history = model.fit(TEXTS * 8, [["bad", "good"][i] for i in LABELS * 8], batch_size=8, epochs=25, verbose=0)
    assert history.history["loss"][-1] < 0.2
    assert model.evaluate(TEXTS, LABELS, verbose=0)[1] == 1.0
    assert numpy(model("very very good")).argmax() == 1


def test_predictions_of_strings_keep_their_order():
    model = classifier()
    together = model.predict(TEXTS, batch_size=2, verbose=0)
    one_by_one = np.concatenate([model.predict([text], verbose=0) for text in TEXTS])
    assert_close(together, one_by_one)
    batch = model.tokenizer(TEXTS)
    assert_close(
        together, model.predict({k: batch[k] for k in ("token_ids", "padding_mask", "token_type_ids")}, verbose=0)
    )


def test_fit_takes_arrays_datasets_and_splits():
    model = classifier()
    inputs = {"token_ids": IDS, "padding_mask": IDS > 0}
    assert "loss" in model.fit(inputs, np.array(LABELS), verbose=0).history
    assert (
        "val_loss" in model.fit(inputs, np.array(LABELS), validation_data=(inputs, np.array(LABELS)), verbose=0).history
    )
    assert "val_loss" in model.fit(TEXTS, LABELS, validation_split=0.5, verbose=0).history
    assert "val_accuracy" in model.fit(TEXTS, LABELS, validation_data=(TEXTS, LABELS), verbose=0).history
    assert "loss" in model.fit(model.dataset(TEXTS, LABELS, batch_size=2, shuffle=True), epochs=2, verbose=0).history
    assert "loss" in model.fit(np.array(TEXTS), LABELS, sample_weight=np.ones(6), verbose=0).history


def test_batches_may_begin_with_equal_lengths():
    """Keras reads TensorFlow's shapes off the first two batches."""
    texts = ["good bad"] * 8 + ["a very good bad so good bad good"] * 4
    model = classifier()
    assert np.isfinite(model.evaluate(texts, [0, 1] * 6, batch_size=4, verbose=0)).all()
    assert np.isfinite(
        model.fit(texts, [0, 1] * 6, batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"]
    ).all()
    assert np.isfinite(model.fit(model.dataset(texts, [0, 1] * 6, batch_size=4), verbose=0).history["loss"]).all()


def test_long_texts_are_cut_to_the_model():
    assert tuple(classifier()(["good " * 100]).shape) == (1, 2)
    assert classifier().predict(["good " * 100], verbose=0).shape == (1, 2)


def test_one_seed_gives_one_run():
    def losses():
        keras.utils.set_random_seed(5)
        return classifier().fit(TEXTS * 4, LABELS * 4, batch_size=4, epochs=2, verbose=0).history["loss"]

    assert losses() == pytest.approx(losses(), rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 2, 0, 1, 0], ["from 0 to 1", "num_classes=2", "2"]),
        (["good"] * 6, ["labels="]),
        ([0, 1], ["2 rows", "6 texts"]),
    ],
)
def test_labels_that_do_not_fit(labels, words):
    with pytest.raises(ValueError) as error:
        classifier().fit(TEXTS, labels, verbose=0)
    for word in words:
        assert word in str(error.value)


def test_errors_name_the_way_out():
    with pytest.raises(ValueError, match=r"no tokenizer.*tokenizer="):
        classifier(tokenizer=None).predict(["text"])
    with pytest.raises(ValueError, match="not among the model's"):
        classifier(labels=["bad", "good"]).fit(TEXTS, ["meh"] * 6)
    with pytest.raises(ValueError, match="empty"):
        classifier().dataset([])
    with pytest.raises(ValueError, match=r"texts\[1\]"):
        classifier().dataset(["a", 3])
    with pytest.raises(ValueError, match="names 3 classes"):
        classifier(labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="kind 'decoder'"):
        tfm.CausalLM(tfm.models.bert(**TINY))
    with pytest.raises(ValueError, match="pooler=True"):
        tfm.TextClassifier(tfm.models.bert(**TINY, pooler=False), pooling="pooler")
    with pytest.raises(ValueError, match="vocabulary_size is 4"):
        tfm.TextClassifier(tfm.models.bert(**{**TINY, "vocabulary_size": 4}), tokenizer=make_tokenizer())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.fit(IDS), "TextClassifier.fit needs labels"),
        (lambda m: m.fit(TEXTS), "TextClassifier.fit needs labels"),
        (lambda m: m.evaluate({"token_ids": IDS}), "TextClassifier.evaluate needs labels"),
        (lambda m: m.predict([]), "x is empty"),
        (lambda m: m.fit([], []), "x is empty"),
        (lambda m: m({"input_ids": IDS}), "'input_ids'.*Did you mean 'token_ids'"),
        (lambda m: tfm.models.transformer(**SHORT)({"encoder_token_ids": IDS}), "Did you mean 'token_ids'"),
        (lambda m: tfm.models.transformer(**SHORT)({"attention_mask": IDS}), "Did you mean 'padding_mask'"),
        (lambda m: m({"token_ids": IDS, "position_ids": IDS}), "Did you mean 'positions'"),
        (lambda m: m({"token_ids": IDS, "attention_mask": IDS > 0}), r"got shape \(6, 9\). A mask .* is padding_mask"),
        (lambda m: m({"token_ids": np.array([["a", "b"]])}), r"got strings.*model\.dataset\(texts, labels\)"),
        (lambda m: tfm.TextClassifier(m.backbone, num_labels=3), "TextClassifier has no argument.*'num_classes'"),
        (
            lambda m: tfm.TextClassifier.from_pretrained("d", num_labels=3),
            "from_pretrained has no argument.*'num_classes'",
        ),
        (lambda m: tfm.TextClassifier.from_pretrained("d", norm_placment="pre"), "'norm_placement'"),
    ],
)
def test_what_is_missing_or_misnamed_is_said(call, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        call(classifier())


def test_labels_are_missed_only_where_a_loss_needs_them():
    class Own(tfm.TextClassifier):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(y_pred**2)

    model = Own(tfm.models.bert(**TINY), 2)
    model.compile("sgd", metrics=[])
    assert np.isfinite(model.fit(IDS, verbose=0).history["loss"]).all()
    with pytest.raises(ValueError, match="needs labels"):
        classifier().fit(classifier().dataset(TEXTS))
    with pytest.raises(ValueError, match=r"MaskedLM\.fit needs labels"):  # its steps are its own, but the library's
        tfm.MaskedLM(tfm.models.bert(**TINY, pooler=False)).fit(IDS)
    with pytest.raises(ValueError, match=r"Seq2SeqLM\.evaluate needs labels"):
        tfm.Seq2SeqLM(tfm.models.transformer(**SHORT)).evaluate({"token_ids": IDS, "decoder_token_ids": IDS})


def test_labels_say_how_many_classes(tmp_path):
    assert classifier(num_classes=None).num_classes == 2
    assert classifier(num_classes=None, labels=["a", "b", "c"]).num_classes == 3
    tfm.models.bert(**TINY).save_pretrained(tmp_path)
    model = tfm.TextClassifier.from_pretrained(tmp_path, labels=["a", "b", "c"])
    assert model.num_classes == 3
    assert model.labels == ["a", "b", "c"]


def test_a_dataset_of_texts_predicts_in_their_order():
    model = classifier()
    assert_close(model.predict(model.dataset(TEXTS, batch_size=2), verbose=0), model.predict(TEXTS, verbose=0))


def test_sample_weights_weigh():
    model = classifier()
    model.compile(keras.optimizers.SGD(0.0))
    alone = model.evaluate(TEXTS[:1], LABELS[:1], verbose=0)[0]
    weighted = model.evaluate(TEXTS, LABELS, sample_weight=[1.0, 0, 0, 0, 0, 0], verbose=0)[0]
    assert weighted == pytest.approx(alone, abs=1e-5)


def tasks():
    bert, gpt = tfm.models.bert(**TINY, dropout=0.1), tfm.models.gpt(**TINY, dropout=0.1)
    untied = tfm.models.gpt(**TINY, tie_embeddings=False)
    both = tfm.models.transformer(**{**TINY, "max_sequence_length": None})
    tokens = (IDS % 3).astype("int32")
    spans = {"start_logits": tokens[:, 0], "end_logits": tokens[:, 1]}
    pair = {"token_ids": IDS, "decoder_token_ids": IDS[:, :5]}
    return {
        "TextClassifier": (tfm.TextClassifier(bert, 3), IDS, tokens[:, 0], (6, 3)),
        "regression": (tfm.TextClassifier(bert, 1), IDS, tokens[:, 0].astype("float32"), (6, 1)),
        "decoder TextClassifier": (tfm.TextClassifier(gpt, 3, dropout=0.3), IDS, tokens[:, 0], (6, 3)),
        "mean TextClassifier": (tfm.TextClassifier(bert, 3, pooling="mean"), IDS, tokens[:, 0], (6, 3)),
        "TokenClassifier": (tfm.TokenClassifier(bert, 3), IDS, tokens, (6, 9, 3)),
        "QuestionAnswerer": (tfm.QuestionAnswerer(bert), IDS, spans, {"start_logits": (6, 9), "end_logits": (6, 9)}),
        "MaskedLM": (tfm.MaskedLM(bert), IDS, IDS, (6, 9, 40)),
        "CausalLM": (tfm.CausalLM(gpt), IDS, None, (6, 9, 40)),
        "untied CausalLM": (tfm.CausalLM(untied), IDS, None, (6, 9, 40)),
        "Seq2SeqLM": (tfm.Seq2SeqLM(both), pair, IDS[:, 1:6], (6, 5, 40)),
    }


@pytest.mark.parametrize("name", list(tasks()))
def test_every_task_trains_saves_and_reloads(name, tmp_path):
    model, x, y, shape = tasks()[name]
    assert keras.tree.map_structure(np.shape, numpy(model(x))) == shape
    history = model.fit(x, y, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    keras.tree.map_structure(np.testing.assert_array_equal, numpy(again(x)), numpy(model(x)))
    assert again.optimizer is not None
    assert int(again.optimizer.iterations) == int(model.optimizer.iterations) == 1
    again.fit(x, y, verbose=0)  # goes on training where the other stopped


@pytest.mark.parametrize("how", ["default", "names", "variables", "both"])
def test_what_is_not_decayed_is_not_after_reloading(how, tmp_path):
    """Keras's optimizers forget it in their config."""
    model = tfm.TextClassifier(tfm.models.bert(**TINY, dropout=0.0), num_classes=2)
    optimizer = None
    if how != "default":
        optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.5)
        listed = model.head.weights[:1] if how != "names" else None
        optimizer.exclude_from_weight_decay(listed, ["gamma", "bias"] if how != "variables" else None)
    model.compile(optimizer)
    x, y = np.ones((2, 4), "int32"), np.array([0, 1])
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    decayed = [
        {variable.path for variable in m.trainable_variables if m.optimizer._use_weight_decay(variable)}
        for m in (model, again)
    ]
    assert decayed[0] == decayed[1]
    assert 0 < len(decayed[0]) < len(model.trainable_variables)
    for each in (model, again):  # and they go on alike
        each.fit(x, y, verbose=0)
    assert_close([v.value for v in again.trainable_variables], [v.value for v in model.trainable_variables], 1e-5)


def test_a_reloaded_classifier_still_reads_strings(tmp_path):
    model = classifier(labels=["bad", "good"])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.labels == ["bad", "good"]
    np.testing.assert_array_equal(again.predict(TEXTS, verbose=0), model.predict(TEXTS, verbose=0))


def test_question_answering_never_points_at_padding():
    model = tfm.QuestionAnswerer(tfm.models.bert(**TINY))
    mask = np.ones_like(IDS, bool)
    mask[:, 6:] = False
    logits = numpy(model({"token_ids": IDS, "padding_mask": mask}))
    assert logits["start_logits"].argmax(-1).max() < 6
    assert np.all(logits["end_logits"][:, 6:] < -1e8)


def test_language_models_share_the_table():
    tied = tfm.CausalLM(tfm.models.gpt(**TINY))
    untied = tfm.CausalLM(tfm.models.gpt(**TINY, tie_embeddings=False))
    assert untied.count_params() - tied.count_params() == 40 * 16
    hidden = numpy(tied.backbone(IDS))
    table = numpy(tied.backbone.token_embedding.table.embeddings)
    assert_close(tied(IDS), hidden @ table.T)


def test_shifted_labels():
    ids = np.array([[5, 6, 7, 8], [0, 0, 5, 6]])
    mask = np.array([[1, 1, 1, 0], [0, 0, 1, 1]])
    assert shifted_labels(ids).tolist() == [[6, 7, 8, -100], [0, 5, 6, -100]]
    assert shifted_labels(ids, mask).tolist() == [[6, 7, -100, -100], [-100, -100, 6, -100]]
    assert shifted_labels(ids, None, np.array([[1, 1, 2, 2], [1, 1, 1, 1]])).tolist()[0] == [6, -100, 8, -100]


def test_causal_lm_makes_its_labels():
    model = tfm.CausalLM(tfm.models.gpt(**TINY, dropout=0.0), tokenizer=make_tokenizer())
    by_itself = model.evaluate(IDS, verbose=0)
    assert by_itself == pytest.approx(model.evaluate(IDS, shifted_labels(IDS), verbose=0))
    assert np.isfinite(model.evaluate(TEXTS, verbose=0)[0])
    assert np.isfinite(model.fit(TEXTS, verbose=0).history["loss"]).all()


@pytest.mark.skipif(BACKEND == "torch", reason="tf.data feeds TensorFlow and JAX")
def test_tf_data():
    tf = pytest.importorskip("tensorflow")
    model = classifier()
    data = tf.data.Dataset.from_tensor_slices(({"token_ids": IDS}, np.array(LABELS))).batch(3)
    assert "loss" in model.fit(data, verbose=0).history
    with pytest.raises(ValueError, match="needs labels"):
        model.fit(data.map(lambda x, y: x), verbose=0)


def test_tf_data_of_strings_is_refused():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(3)
    for call in (classifier().fit, classifier().evaluate, classifier().predict):
        with pytest.raises(ValueError, match=r"strings.*fit\(texts, labels\).*model\.dataset\(texts, labels\)"):
            call(data)

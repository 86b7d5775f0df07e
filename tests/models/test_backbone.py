"""Backbones: published sizes, inputs by name, and that graph, cached step and scores are one computation."""

import keras
import numpy as np
import pytest
from helpers import assert_close, numpy

import keras_tfm as tfm
from keras_tfm.ops.backend import without_allocating

TINY = dict(num_layers=2, hidden_dim=16, num_heads=4, vocabulary_size=31)
IDS = np.random.default_rng(1).integers(1, 31, (2, 9)).astype("int32")
POSITIONS = ["learned", "sinusoidal", "rotary", "alibi", "relative", "disentangled"]

PUBLISHED = {
    ("bert", "tiny"): 4_385_920,
    ("bert", "small"): 28_763_648,
    ("bert", "medium"): 41_373_184,
    ("bert", "base"): 109_482_240,
    ("bert", "large"): 335_141_888,
    ("gpt", "small"): 124_439_808,
    ("gpt", "medium"): 354_823_168,
    ("gpt", "large"): 774_030_080,
    ("gpt", "xl"): 1_557_611_200,
    ("transformer", "base"): 63_082_496,
    ("transformer", "big"): 214_245_376,
}
VOCABULARIES = {("base", 28_996): 108_310_272, ("base", 119_547): 177_853_440, ("large", 28_996): 333_579_264}


def gpt(**options):
    return tfm.models.gpt(**{**TINY, "max_sequence_length": 32, "dropout": 0.0, **options})


def bert(**options):
    return tfm.models.bert(**{**TINY, "max_sequence_length": 32, "dropout": 0.0, **options})


def transformer(**options):
    return tfm.models.transformer(**{**TINY, "dropout": 0.0, **options})


@pytest.mark.parametrize(("family", "size"), PUBLISHED)
def test_published_parameter_counts(family, size):
    with without_allocating():
        model = getattr(tfm.models, family)(size)
    assert model.count_params() == PUBLISHED[family, size]


@pytest.mark.parametrize(("size", "vocabulary"), VOCABULARIES)
def test_published_parameter_counts_of_other_vocabularies(size, vocabulary):
    with without_allocating():
        model = tfm.models.bert(size, vocabulary_size=vocabulary)
    assert model.count_params() == VOCABULARIES[size, vocabulary]


def test_counting_allocates_nothing_later():
    with without_allocating():
        model = tfm.models.gpt(**TINY, max_sequence_length=8)
    with keras.StatelessScope():  # on leaving which Keras fills in what is waiting
        pass
    assert all(weight._value is None for weight in model.weights)


def test_builders_take_a_size_keywords_or_a_config():
    config = gpt().config
    assert tfm.models.gpt(config).config == config
    assert tfm.models.gpt(config, num_layers=1).config.num_layers == 1
    assert tfm.models.bert("tiny", vocabulary_size=50).config.vocabulary_size == 50
    with pytest.raises(ValueError, match=r"tiny.*got 'tny'. Did you mean 'tiny'"):
        tfm.models.bert("tny")
    with pytest.raises(ValueError, match=r"missing are \['num_layers'"):
        tfm.models.gpt(hidden_dim=8, num_heads=2)
    with pytest.raises(ValueError, match="kind 'encoder'"):
        tfm.models.bert(config)
    with pytest.raises(ValueError, match=r"'num_layer'\. Did you mean 'num_layers'"):
        tfm.models.bert("tiny", num_layer=3)


def test_outputs_are_named():
    encoded = bert()(IDS)
    assert {name: tuple(x.shape) for name, x in encoded.items()} == {
        "sequence_output": (2, 9, 16),
        "pooled_output": (2, 16),
    }
    assert set(bert(pooler=False)(IDS)) == {"sequence_output"}
    assert tuple(gpt()(IDS).shape) == (2, 9, 16)
    both = transformer()({"token_ids": IDS, "decoder_token_ids": IDS[:, :4]})
    assert {name: tuple(x.shape) for name, x in both.items()} == {
        "sequence_output": (2, 4, 16),
        "encoder_sequence_output": (2, 9, 16),
    }


def test_only_the_first_input_is_required():
    model = bert()
    full = model(
        {
            "token_ids": IDS,
            "padding_mask": np.ones_like(IDS, bool),
            "token_type_ids": 0 * IDS,
            "positions": np.arange(9)[None] + 0 * IDS,
        }
    )
    for inputs in (IDS, {"token_ids": IDS}):
        keras.tree.map_structure(assert_close, numpy(model(inputs)), numpy(full))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"tokens": IDS}, ["'tokens'", "token_ids"]),
        ({"padding_mask": IDS > 0}, ["needs the input 'token_ids'"]),
        ({"token_ids": IDS[0]}, ["token_ids", "(batch, length)", "(9,)"]),
        ({"token_ids": IDS + 31}, ["token_ids", "from 0 to 30"]),
        ({"token_ids": IDS, "padding_mask": np.ones((2, 9, 9), bool)}, ["padding_mask", "(2, 9, 9)"]),
        ({"token_ids": IDS, "padding_mask": np.ones((2, 8), bool)}, ["padding_mask", "(2, 8)"]),
        ({"token_ids": np.ones((2, 33), "int32")}, ["33", "max_length=32"]),
    ],
)
def test_inputs_that_do_not_fit(inputs, words):
    with pytest.raises(ValueError) as error:
        bert()(inputs)
    for word in words:
        assert word in str(error.value)


def test_an_encoder_decoder_needs_both_sides():
    with pytest.raises(ValueError, match="needs the input 'decoder_token_ids'"):
        transformer()(IDS)


@pytest.mark.parametrize("build", [bert, gpt])
@pytest.mark.parametrize("position", POSITIONS)
def test_padding_on_either_side_changes_no_real_token(build, position):
    model = build(position=position)

    def run(ids, mask):
        output = model({"token_ids": ids, "padding_mask": mask})
        return numpy(output["sequence_output"] if isinstance(output, dict) else output)

    plain = run(IDS, np.ones_like(IDS, bool))
    for left, right in ((3, 0), (0, 3), (2, 1)):
        for junk in (0, 7):
            ids = np.pad(IDS, ((0, 0), (left, right)), constant_values=junk)
            mask = np.pad(np.ones_like(IDS, bool), ((0, 0), (left, right)))
            assert_close(run(ids, mask)[:, left : left + 9], plain, 2e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_packed_row_is_its_parts(position):
    model = gpt(position=position)
    parts = [IDS[:1, :4], IDS[1:, :3]]
    packed = model({"token_ids": np.concatenate(parts, 1), "segment_ids": np.array([[1] * 4 + [2] * 3])})
    apart = [numpy(model(part)) for part in parts]
    assert_close(packed, np.concatenate(apart, 1), 2e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_decoder_does_not_look_ahead(position):
    model = gpt(position=position)
    changed = IDS.copy()
    changed[:, 5] = (changed[:, 5] + 3) % 31
    before, after = numpy(model(IDS)), numpy(model(changed))
    assert_close(before[:, :5], after[:, :5], 1e-6)
    assert np.abs(before[:, 5:] - after[:, 5:]).max() > 1e-3


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("options", [{}, dict(num_key_value_heads=2, window=4)], ids=["full", "grouped-window"])
def test_cached_steps_give_what_one_call_gives(position, options):
    model = gpt(position=position, **options)
    full = numpy(model(IDS))
    cache, parts = model.make_cache(2, 12), []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        hidden, cache = model.cached_call(IDS[:, start:stop], cache)
        parts.append(numpy(hidden))
    assert_close(np.concatenate(parts, 1), full, 2e-5)


# As Gemma 3's and SmolLM3's: blocks with a window and a rotary base of their own, blocks without positions.
PATTERN = dict(
    num_layers=3,
    position="rotary",
    layer_pattern=[{"window": 4, "position": {"kind": "rotary", "base": 50.0}}, {"position": None}, {}],
)


def test_blocks_differ_as_the_pattern_says():
    model = gpt(**PATTERN)
    attention = [block.attention for block in model.blocks]
    assert [layer.window for layer in attention] == [4, None, None]
    assert [getattr(layer.position, "base", None) for layer in attention] == [50.0, None, 10_000.0]
    cache, parts = model.make_cache(2, 12), []
    assert [block["attention"]["positions"].shape[1] for block in cache] == [4, 12, 12]
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        hidden, cache = model.cached_call(IDS[:, start:stop], cache)
        parts.append(numpy(hidden))
    assert_close(np.concatenate(parts, 1), model(IDS), 2e-5)


def test_an_encoder_decoder_decodes_in_cached_steps():
    model = transformer()
    mask = np.ones_like(IDS, bool)
    mask[1, 6:] = False
    target = IDS[:, :5]
    full = model({"token_ids": IDS, "padding_mask": mask, "decoder_token_ids": target})
    context = model.encode({"token_ids": IDS, "padding_mask": mask})
    assert_close(context, full["encoder_sequence_output"])
    cache, parts = model.make_cache(2, 8, context=context), []
    for step in range(5):
        hidden, cache = model.cached_call(
            {"decoder_token_ids": target[:, step : step + 1], "padding_mask": mask}, cache
        )
        parts.append(numpy(hidden))
    assert_close(np.concatenate(parts, 1), full["sequence_output"], 2e-5)


def test_scores_of_every_block():
    mask = np.ones_like(IDS, bool)
    mask[1, 6:] = False
    scores = bert().attention_scores({"token_ids": IDS, "padding_mask": mask})
    assert [tuple(s.shape) for s in scores] == [(2, 4, 9, 9)] * 2
    assert_close(numpy(scores[0]).sum(-1), np.ones((2, 4, 9)))
    assert np.all(numpy(scores[1])[1, :, :, 6:] == 0)
    both = transformer().attention_scores({"token_ids": IDS, "decoder_token_ids": IDS[:, :4]})
    assert [tuple(s.shape) for s in both["encoder"]] == [(2, 4, 9, 9)] * 2
    assert [tuple(s["cross_attention"].shape) for s in both["decoder"]] == [(2, 4, 4, 9)] * 2


@pytest.mark.parametrize(
    "build",
    [
        lambda: bert(),
        lambda: gpt(
            position="rotary",
            norm="rms_norm",
            gated=True,
            activation="silu",
            num_key_value_heads=2,
            tie_embeddings=False,
        ),
        lambda: gpt(position="relative", attention={"qk_norm": "rms_norm"}, parallel=True),
        lambda: gpt(**PATTERN, embedding_scale=4.0, head_bias=True, logit_scale=0.5, logit_softcap=3.0),
        lambda: bert(attention_position={"kind": "relative", "num_buckets": 8, "max_distance": 16}),
        lambda: bert(position=None, attention_position="disentangled"),
        lambda: transformer(num_decoder_layers=1),
    ],
    ids=["bert", "llama-like", "relative", "pattern", "mpnet-like", "deberta-like", "transformer"],
)
def test_keras_files_hold_everything(build, tmp_path):
    model = build()
    inputs = {"token_ids": IDS}
    if model.config.kind == "encoder_decoder":
        inputs["decoder_token_ids"] = IDS[:, :4]
    expected = numpy(model(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.config == model.config
    assert [w.path for w in again.weights] == [w.path for w in model.weights]
    keras.tree.map_structure(np.testing.assert_array_equal, numpy(again(inputs)), expected)


def test_plugs_into_a_functional_model(tmp_path):
    backbone = bert()
    ids = keras.Input((None,), dtype="int32")
    model = keras.Model(ids, keras.layers.Dense(3)(backbone({"token_ids": ids})["pooled_output"]))
    expected = numpy(model(IDS))
    assert expected.shape == (2, 3)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(keras.models.load_model(tmp_path / "model.keras")(IDS)), expected)


def test_is_a_functional_model():
    backbone = gpt()
    inner = keras.Model(backbone.input, backbone.get_layer("block_0").output)
    inputs = dict.fromkeys(backbone.input)
    assert tuple(inner({**inputs, "token_ids": IDS}).shape) == (2, 9, 16)
    assert backbone.layers


def test_mask_zero_stands_in_for_a_padding_mask():
    ids = IDS.copy()
    ids[:, 6:] = 0
    masked, plain = bert(mask_zero=True), bert()
    plain.set_weights(masked.get_weights())
    assert_close(
        numpy(masked(ids))["sequence_output"][:, :6],
        numpy(plain({"token_ids": ids, "padding_mask": ids != 0}))["sequence_output"][:, :6],
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("mixed_bfloat16", 6e-2), ("mixed_float16", 8e-3), ("bfloat16", 8e-2)]
)
def test_low_precision_is_close_by_value(dtype, tolerance):
    exact, low = gpt(position="rotary"), gpt(position="rotary", dtype=dtype)
    low.set_weights(exact.get_weights())
    output = low(IDS)
    assert keras.backend.standardize_dtype(output.dtype) == low.compute_dtype != "float32"
    assert_close(output, numpy(exact(IDS)), tolerance)


def test_every_weight_states_its_axes():
    for model in (bert(), gpt(tie_embeddings=False, position="relative"), transformer()):
        for weight in model.trainable_weights:
            assert len(getattr(weight, "logical_axes", ())) == len(weight.shape), weight.path


def test_int8_reloads_as_int8(tmp_path):
    model = gpt()
    model.quantize("int8")
    expected = numpy(model(IDS))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert any("int8" in str(w.dtype) for w in again.weights)
    np.testing.assert_array_equal(numpy(again(IDS)), expected)


@pytest.mark.parametrize("vocabulary", [65, 1031])
def test_an_untrained_language_model_is_undecided(vocabulary):
    model = tfm.CausalLM(gpt(vocabulary_size=vocabulary))
    model.compile()
    ids = np.random.default_rng(0).integers(0, vocabulary, (8, 32)).astype("int32")
    assert model.evaluate(ids, verbose=0)[0] == pytest.approx(np.log(vocabulary), abs=0.02)

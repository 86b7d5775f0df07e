"""KerasHub's tokenizers, taken wherever one of ours is: the ids of KerasHub's own preprocessors."""

import json
import logging
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import numpy
from hypothesis import given
from hypothesis import strategies as st

import keras_tfm as tfm
from keras_tfm.data import KerasHubTokenizer, TextBatches, Tokenizer, accepted, as_tokenizer

pytestmark = pytest.mark.once

hub = pytest.importorskip("keras_hub")
pytest.importorskip("sentencepiece")

from data.hub_tokenizers import MAKE, TEXTS, make  # noqa: E402

PAIRS = list(zip(TEXTS, reversed(TEXTS), strict=True))
ENCODERS = ["Bert", "DistilBert", "Albert", "DebertaV3", "Roberta", "XLMRoberta"]
DECODERS = ["GPT2", "OPT", "Llama", "Llama3", "Mistral", "Qwen", "Gemma"]
TINY = dict(num_layers=1, hidden_dim=16, num_heads=2, intermediate_dim=32)


def ids(tokenizer, texts=TEXTS):
    return [encoding.ids for encoding in tokenizer.encode(texts)]


def assert_batch(ours, theirs):
    theirs = numpy(theirs)
    np.testing.assert_array_equal(ours["token_ids"], theirs["token_ids"])
    if "padding_mask" in theirs:
        np.testing.assert_array_equal(ours["padding_mask"], theirs["padding_mask"].astype(bool))
    if "segment_ids" in theirs:
        np.testing.assert_array_equal(ours["token_type_ids"], theirs["segment_ids"])


def test_every_family_is_in_a_test():
    assert {*ENCODERS, *DECODERS, "Bart", "T5"} == set(MAKE)


@pytest.mark.parametrize("length", [6, 9, 64])
@pytest.mark.parametrize("truncate", ["round_robin", "waterfall"])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_give_the_ids_of_their_preprocessor(name, truncate, length):
    cls = getattr(hub.models, f"{name}TextClassifierPreprocessor")
    preprocessor = cls(make(name), sequence_length=length, truncate=truncate)
    ours = KerasHubTokenizer.from_preprocessor(preprocessor)
    assert ours.max_length == length
    assert_batch(ours(TEXTS, pad_to=length), preprocessor(TEXTS))
    firsts, seconds = map(list, zip(*PAIRS, strict=True))
    assert_batch(ours(PAIRS, pad_to=length), preprocessor((firsts, seconds), y=None))
    alone = KerasHubTokenizer(make(name), length, truncate=truncate)  # the same without the preprocessor
    assert ids(alone, PAIRS) == ids(ours, PAIRS)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_give_the_ids_of_their_preprocessor(name):
    cls = getattr(hub.models, f"{name}CausalLMPreprocessor")
    for start in (True, False):
        preprocessor = cls(make(name), sequence_length=70, add_start_token=start)
        ours = KerasHubTokenizer.from_preprocessor(preprocessor)
        if start:  # KerasHub's `generate_preprocess` minds no add_start_token
            assert_batch(ours(TEXTS, pad_to=70), preprocessor.generate_preprocess(TEXTS))
            assert ids(KerasHubTokenizer(make(name))) == ids(ours)
        training = KerasHubTokenizer(
            make(name), 71, add_start_token=start and name != "Qwen", add_end_token=True
        )  # one more, for the labels
        assert_batch({key: array[:, :70] for key, array in training(TEXTS, pad_to=71).items()}, preprocessor(TEXTS)[0])
        assert ours.add_start_token == (start and name != "Qwen")
        assert not ours.add_end_token


@pytest.mark.parametrize("name", ["Bart", "T5"])
def test_encoder_decoders_give_the_ids_of_their_encoder(name):
    cls = getattr(hub.models, f"{name}Seq2SeqLMPreprocessor")
    for length in (8, 70):
        preprocessor = cls(make(name), encoder_sequence_length=length, decoder_sequence_length=3)
        theirs = preprocessor.generate_preprocess({"encoder_text": TEXTS, "decoder_text": TEXTS})
        ours = KerasHubTokenizer.from_preprocessor(preprocessor)
        assert_batch(
            ours(TEXTS, pad_to=length), {key: theirs[f"encoder_{key}"] for key in ("token_ids", "padding_mask")}
        )


def test_t5_preprocessor_says_what_is_added():
    for end in (True, False):
        preprocessor = hub.models.T5Preprocessor(make("T5"), sequence_length=64, add_end_token=end)
        assert_batch(KerasHubTokenizer.from_preprocessor(preprocessor)(TEXTS, pad_to=64), preprocessor(TEXTS))


def test_a_bare_tokenizer_of_any_class():
    words = hub.tokenizers.WordPieceTokenizer(vocabulary=["[UNK]", "the", "soup"])
    assert ids(KerasHubTokenizer(words), ["the soup", "so"]) == [[1, 2], [0]]
    tokens = hub.tokenizers.ByteTokenizer()
    assert ids(KerasHubTokenizer(tokens), ["ab"]) == [[97, 98]]
    own_start = MAKE["Llama"](add_bos=True)
    assert ids(KerasHubTokenizer(own_start), ["soup"]) == ids(KerasHubTokenizer(make("Llama")), ["soup"])


def test_a_subclass_is_framed_as_its_family():
    class Mine(hub.tokenizers.RobertaTokenizer):
        pass

    theirs = make("Roberta")
    mine = Mine(vocabulary=dict(theirs.vocabulary), merges=list(theirs.merges))
    assert ids(KerasHubTokenizer(mine), PAIRS) == ids(KerasHubTokenizer(theirs), PAIRS)
    with pytest.raises(ValueError, match=r"Mine cannot be saved.*keras_hub\.tokenizers"):
        KerasHubTokenizer(mine).to_json()


def test_sequence_length_is_a_limit_not_padding():
    short = MAKE["Bert"](sequence_length=6)
    ours = KerasHubTokenizer(short)
    assert ours.max_length == short.sequence_length == 6
    batch = ours(["soup", TEXTS[0]])
    assert batch["padding_mask"].sum(1).tolist() == [3, 6]
    assert short.sequence_length == 6  # as it was
    assert ours.truncated == 1
    assert KerasHubTokenizer(short, 4)([TEXTS[0]])["token_ids"].shape == (1, 4)


def test_a_batch_is_one_call(monkeypatch):
    tokenizer, calls = MAKE["Bert"](), []
    tokenize = tokenizer.tokenize
    monkeypatch.setattr(tokenizer, "tokenize", lambda texts: calls.append(texts) or tokenize(texts))
    KerasHubTokenizer(tokenizer)([*TEXTS, *PAIRS])
    assert calls == [[*TEXTS, *(text for pair in PAIRS for text in pair)]]


def test_padding_side_and_empty_batches():
    left = KerasHubTokenizer(make("Roberta"), padding_side="left")(["soup", TEXTS[0]])
    right = KerasHubTokenizer(make("Roberta"))(["soup", TEXTS[0]])
    length = right["padding_mask"][0].sum()
    np.testing.assert_array_equal(left["token_ids"][0, -length:], right["token_ids"][0, :length])
    assert (left["token_ids"][0, :-length] == make("Roberta").pad_token_id).all()
    assert KerasHubTokenizer(make("Bert"))([])["token_ids"].shape == (0, 1)


def test_special_ids():
    def found(name):
        tokenizer = KerasHubTokenizer(make(name))
        return {role: tokenizer.special_id(role) for role in ("pad", "cls", "sep", "mask", "unk", "bos", "eos")}

    assert found("Bert") == dict(pad=0, unk=1, cls=2, sep=3, mask=4, bos=2, eos=3)
    assert found("Roberta") == dict(cls=0, bos=0, pad=1, sep=2, eos=2, mask=4, unk=None)
    assert found("GPT2") == dict(bos=0, eos=0, pad=None, cls=None, sep=None, mask=None, unk=None)
    assert found("T5") == dict(pad=0, eos=1, bos=None, cls=None, sep=None, mask=None, unk=None)
    assert KerasHubTokenizer(make("Bert")).vocabulary_size == make("Bert").vocabulary_size()


@pytest.mark.parametrize("name", MAKE)
def test_decode_is_detokenize_without_special_tokens(name):
    tokenizer, theirs = KerasHubTokenizer(make(name)), make(name)
    text = "The soup was cold, and so was the waiter."
    batch = tokenizer([text, text + " " + text])
    row = batch["token_ids"][0][batch["padding_mask"][0]]
    expected = theirs.detokenize([theirs.tokenize([text])[0]])[0]
    assert tokenizer.decode(row) == expected
    assert tokenizer.decode([*row, tokenizer.vocabulary_size + 3]) == expected  # past the vocabulary
    assert tokenizer.decode([]) == ""
    if name in ("Bert", "GPT2"):
        assert len(tokenizer.decode(row, skip_special_tokens=False)) > len(expected)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(padding_side="middle"), r"padding_side.*'middle'"),
        (dict(truncate="longest"), r"truncate.*'longest'"),
        (dict(name="Qwen", add_start_token=True), r"add_start_token=True.*QwenTokenizer"),
    ],
)
def test_options_are_checked(options, message):
    options = dict(options)
    with pytest.raises(ValueError, match=message):
        KerasHubTokenizer(make(options.pop("name", "Bert")), **options)


def test_what_cannot_be_tokenized_with_is_named():
    with pytest.raises(ValueError, match=r"dtype='int32'.*string"):
        KerasHubTokenizer(MAKE["Bert"](dtype="string"))
    with pytest.raises(ValueError, match=r"split=True.*split=False"):
        KerasHubTokenizer(MAKE["Bert"](split=False))
    with pytest.raises(ValueError, match="vocabulary"):
        KerasHubTokenizer(hub.tokenizers.BertTokenizer())
    ours = KerasHubTokenizer(make("Bert"))
    with pytest.raises(ValueError, match=r"pair of strings.*'c'"):
        ours([("a", "b", "c")])
    with pytest.raises(ValueError, match=r"max_length.*at least 3.*got 2"):
        ours(PAIRS, max_length=2)


# JSON and .keras files ------------------------------------------------------------------------------------------------

VARIANTS = {
    **{name: {} for name in MAKE},
    "Bert, cased": dict(lowercase=False, strip_accents=True, split_on_cjk=False, special_tokens_in_strings=True),
    "GPT2, prefixed": dict(add_prefix_space=True, sequence_length=7),
    "Llama3, instructed": dict(eos_token="<|eot_id|>", misc_special_tokens=set()),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_json_round_trip(case):
    name = case.partition(",")[0]
    ours = KerasHubTokenizer(
        MAKE[name](**VARIANTS[case]), 11, "left", add_start_token=False, add_end_token=True, truncate="waterfall"
    )
    again = accepted.from_json(json.loads(json.dumps(ours.to_json())))
    assert isinstance(again, KerasHubTokenizer)
    assert type(again.tokenizer) is type(ours.tokenizer)
    assert json.loads(again.to_json()["keras_hub"]) == json.loads(ours.to_json()["keras_hub"])
    texts = [*TEXTS, *PAIRS, "中文 [SEP] é <|eot_id|>"]
    batch, expected = again(texts), ours(texts)
    for key, array in expected.items():
        np.testing.assert_array_equal(batch[key], array)
    for role in ("pad", "bos", "eos", "mask"):
        assert again.special_id(role) == ours.special_id(role)
    assert {**again.to_json(), "keras_hub": None} == {**ours.to_json(), "keras_hub": None}


def classifier(name="Bert", **options):
    vocabulary_size = make(name).vocabulary_size()
    backbone = tfm.models.bert(**TINY, vocabulary_size=vocabulary_size, max_sequence_length=32, dropout=0.0)
    return tfm.TextClassifier(backbone, num_classes=2, **options)


@pytest.mark.slow
def test_keras_files_load_in_a_fresh_process(tmp_path):
    names = ["Bert", "Roberta", "T5"]  # the three kinds of vocabulary
    expected = {}
    for name in names:
        model = classifier(name, tokenizer=make(name))
        expected[name] = model.predict(TEXTS, verbose=0).tolist()
        model.save(tmp_path / f"{name}.keras")
    script = """
import json, sys, keras, keras_tfm
assert "keras_hub" not in sys.modules
models = {name: keras.models.load_model(f"{sys.argv[1]}/{name}.keras") for name in json.loads(sys.argv[2])}
texts = json.loads(sys.argv[3])
print(json.dumps({name: model.predict(texts, verbose=0).tolist() for name, model in models.items()}))
"""
    arguments = [str(tmp_path), json.dumps(names), json.dumps(TEXTS)]
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    got = json.loads(run.stdout.strip().splitlines()[-1])
    for name in names:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_loading_without_keras_hub_names_the_extra(tmp_path, monkeypatch):
    classifier(tokenizer=make("Bert")).save(tmp_path / "model.keras")
    classifier("T5", tokenizer=make("T5")).save_pretrained(tmp_path / "written")
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match=r"BertTokenizer.*keras_tfm\[nlp\]"):
        keras.models.load_model(tmp_path / "model.keras")
    with pytest.raises(ImportError, match=r"T5Tokenizer.*keras_tfm\[nlp\]"):
        tfm.TextClassifier.from_pretrained(tmp_path / "written")
    assert tfm.TextClassifier.from_pretrained(tmp_path / "written", tokenizer=None).tokenizer is None


# Files that transformers reads ----------------------------------------------------------------------------------------

CHARACTERS = [c for c in map(chr, range(33, 0x2400)) if c.isprintable()]
# What folds otherwise than in `tokenizers`: iota subscripts, Cherokee, Cyrillic variants, characters of late Unicode.
OTHERWISE = [(0x345, 0x345), (0x37A, 0x37A), (0x13A0, 0x13FF), (0xAB60, 0xABBF), (0x1C80, 0x1C8F), (0x1F80, 0x1FFF)]
OTHERWISE += [(0x32FF, 0x32FF), (0xA7F2, 0xA7F4), (0x10780, 0x107BF), (0x1F16C, 0x1F16C), (0x1FBF0, 0x1FBF9)]
OTHERWISE += [(0x1171E, 0x1171E), (0x11938, 0x11938)]
ALIKE = st.characters(exclude_categories=["Cs", "Cn", "Co"], max_codepoint=0x1FFFF).filter(
    lambda c: not any(first <= ord(c) <= last for first, last in OTHERWISE)
)
UNICODE = st.text(ALIKE, max_size=25) | st.text(
    st.sampled_from([*"aB1,.'\t\n 中é½ﬁß…ςΣ\xa0\u200b\0\rﷺİ\u0301😀"]), max_size=25
)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False])
@pytest.mark.parametrize("split_on_cjk", [True, False])
def test_word_pieces_are_converted_exactly(lowercase, strip_accents, split_on_cjk, tmp_path):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *CHARACTERS, *(f"##{c}" for c in CHARACTERS), "so", "##up", "中", "##中"]
    options = dict(lowercase=lowercase, strip_accents=strip_accents, split_on_cjk=split_on_cjk)
    theirs = hub.tokenizers.BertTokenizer(vocabulary=vocabulary, **options)
    ours = KerasHubTokenizer(theirs)
    ours.save(tmp_path)
    read = accepted.from_directory(tmp_path)
    assert isinstance(read, Tokenizer)

    @given(st.lists(UNICODE, min_size=30, max_size=60))
    def same(texts):
        for text, a, b in zip(texts, ids(read, texts), ids(ours, texts), strict=True):
            assert a == b, ascii(text)

    same()


@pytest.mark.parametrize("case", [case for case in VARIANTS if hasattr(make(case.partition(",")[0]), "merges")])
def test_byte_pairs_are_converted_exactly(case, tmp_path):
    ours = KerasHubTokenizer(MAKE[case.partition(",")[0]](**VARIANTS[case]))
    ours.save(tmp_path)
    read = accepted.from_directory(tmp_path)
    assert isinstance(read, Tokenizer)
    for role in ("pad", "bos", "eos", "mask"):
        if ours.special_id(role) is not None:
            assert read.special_id(role) == ours.special_id(role)

    @given(st.lists(UNICODE, min_size=1, max_size=20))
    def same(texts):
        assert ids(read, texts) == ids(ours, texts)
        pairs = list(zip(texts, reversed(texts), strict=True))
        long = 10_000  # pairs are cut in another order
        assert [e.ids for e in read.encode(pairs, long)] == [e.ids for e in ours.encode(pairs, long)]

    same()
    assert read.decode(ids(read, ["the soup"])[0]) == ours.decode(ids(ours, ["the soup"])[0])


def test_byte_pairs_in_tensorflow_are_converted_by_gpt2s_rules(tmp_path):
    theirs = MAKE["GPT2"](_allow_python_workflow=False)
    ours = KerasHubTokenizer(theirs)
    ours.save(tmp_path)
    texts = ["The soup was cold, and so was the waiter.", "it's 1234 words!", "<|endoftext|> soup", "naïve 日本語"]
    assert ids(accepted.from_directory(tmp_path), texts) == ids(ours, texts)


def test_a_conversion_that_differs_is_said(tmp_path, caplog, monkeypatch):
    theirs = MAKE["Bert"]()
    tokenize = theirs.tokenize
    monkeypatch.setattr(theirs, "tokenize", lambda texts: [row[::-1] for row in tokenize(texts)])
    with caplog.at_level(logging.WARNING, "keras_tfm"):
        KerasHubTokenizer(theirs).save(tmp_path)
    assert "BertTokenizer" in caplog.text
    assert "otherwise" in caplog.text


MODEL_TYPES = {
    "Bert": "bert",
    "Albert": "albert",
    "DebertaV3": "deberta-v2",
    "Roberta": "roberta",
    "XLMRoberta": "xlm-roberta",
    "GPT2": "gpt2",
    "Qwen": "qwen2",
    "Llama": "llama",
    "Llama3": "llama",
    "Gemma": "gemma",
    "T5": "t5",
    "Bart": "bart",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_transformers_loads_what_is_saved_and_tokenizes_the_same(name, tmp_path, caplog):
    transformers = pytest.importorskip("transformers")
    ours = KerasHubTokenizer(make(name), 64)
    with caplog.at_level(logging.WARNING, "keras_tfm"):
        ours.save(tmp_path)
    assert not caplog.records
    (tmp_path / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[name]}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [TEXTS[0], "soup", "Not a single dull minute!?", "a dúll film: 1234 words isn't"]
    assert theirs(texts)["input_ids"] == ids(ours, texts)
    assert theirs.model_max_length == 64
    again = accepted.from_directory(tmp_path)
    assert ids(again, texts) == ids(ours, texts)
    assert again.max_length == 64
    assert again.special_id("eos") == ours.special_id("eos")


def test_what_has_no_hugging_face_format_is_said_and_kept(tmp_path, caplog):
    ours = KerasHubTokenizer(hub.tokenizers.ByteTokenizer(lowercase=False), 9)
    with caplog.at_level(logging.WARNING, "keras_tfm"):
        ours.save(tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "ByteTokenizer" in caplog.text
    again = accepted.from_directory(tmp_path)
    assert again.to_json() == ours.to_json()
    assert accepted.from_directory(tmp_path, max_length=3).max_length == 3
    assert accepted.from_directory(tmp_path / "nothing") is None


# Wherever one is taken ------------------------------------------------------------------------------------------------


def test_tasks_take_one_and_keras_takes_it_for_no_layer():
    theirs = make("Bert")
    given_to, assigned = classifier(tokenizer=theirs), classifier()
    assigned.set_weights(given_to.get_weights())
    assigned.tokenizer = theirs
    for model in (given_to, assigned):
        assert isinstance(model.tokenizer, KerasHubTokenizer)
        assert theirs not in model._flatten_layers()
        assert model.predict(TEXTS, verbose=0).shape == (5, 2)
    np.testing.assert_allclose(assigned.predict(TEXTS, verbose=0), given_to.predict(TEXTS, verbose=0), atol=1e-6)
    assigned.fit(TEXTS, [0, 1, 0, 1, 0], batch_size=2, verbose=0)
    with pytest.raises(TypeError, match=r"tokenizer must be.*got 7"):
        assigned.tokenizer = 7
    assigned.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        assigned.predict(TEXTS, verbose=0)


def test_one_with_too_many_tokens_is_refused():
    size = make("T5").vocabulary_size()
    model = tfm.TextClassifier(tfm.models.bert(**TINY, vocabulary_size=size - 1), num_classes=2)
    with pytest.raises(ValueError, match=rf"{size} tokens.*vocabulary_size is {size - 1}"):
        model.tokenizer = make("T5")


def test_text_batches_take_one():
    batches = TextBatches(TEXTS, make("Bert"), 2, group_by_length=False)
    expected = KerasHubTokenizer(make("Bert"))(TEXTS[:2])
    np.testing.assert_array_equal(batches[0]["token_ids"], expected["token_ids"])


@pytest.mark.parametrize("name", ["Bert", "T5"])
def test_save_pretrained_and_from_pretrained(name, tmp_path):
    model = classifier(name, tokenizer=make(name))
    model.save_pretrained(tmp_path)
    for options in ({}, {"tokenizer": make(name)}):
        again = tfm.TextClassifier.from_pretrained(tmp_path, **options)
        np.testing.assert_allclose(again.predict(TEXTS, verbose=0), model.predict(TEXTS, verbose=0), atol=1e-6)
    with pytest.raises(TypeError, match="tokenizer must be"):
        tfm.TextClassifier.from_pretrained(tmp_path, tokenizer="bert")
    with pytest.raises(ValueError, match="no tokenizer"):
        tfm.Backbone.from_pretrained(tmp_path, tokenizer=make(name))


SIZES = dict(num_layers=1, hidden_dim=16, num_heads=2, intermediate_dim=32, max_sequence_length=40)


def test_from_keras_hub_brings_the_tokenizer_of_a_classifier():
    preprocessor = hub.models.BertTextClassifierPreprocessor(make("Bert"), sequence_length=20, truncate="waterfall")
    backbone = hub.models.BertBackbone(vocabulary_size=make("Bert").vocabulary_size(), **SIZES)
    theirs = hub.models.BertTextClassifier(backbone, num_classes=3, preprocessor=preprocessor)
    ours = tfm.from_keras_hub(theirs)
    assert (ours.tokenizer.max_length, ours.tokenizer.truncate) == (20, "waterfall")
    np.testing.assert_allclose(
        numpy(ours.predict(TEXTS, verbose=0)), theirs.predict(TEXTS, verbose=0), rtol=1e-4, atol=1e-5
    )


def test_from_keras_hub_brings_the_tokenizer_of_a_language_model():
    preprocessor = hub.models.GPT2CausalLMPreprocessor(make("GPT2"), sequence_length=20, add_start_token=False)
    backbone = hub.models.GPT2Backbone(vocabulary_size=make("GPT2").vocabulary_size(), **SIZES)
    ours = tfm.from_keras_hub(hub.models.GPT2CausalLM(backbone, preprocessor=preprocessor))
    assert ours.tokenizer.max_length == 20
    assert not ours.tokenizer.add_start_token
    assert ours.tokenizer.tokenizer is make("GPT2")
    bare = tfm.from_keras_hub(hub.models.GPT2CausalLM(backbone, preprocessor=None))
    assert bare.tokenizer is None


def test_as_tokenizer_wraps_one_once():
    ours = as_tokenizer(make("Bert"))
    assert isinstance(ours, KerasHubTokenizer)
    assert as_tokenizer(ours) is ours
    with pytest.raises(TypeError, match="got <class"):
        as_tokenizer(hub.tokenizers.BertTokenizer)

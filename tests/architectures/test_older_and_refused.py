"""config.json files by older names, and those that ask for what is not implemented."""

from __future__ import annotations

import pytest

from keras_tfm.architectures import find

BART = dict(
    vocab_size=43,
    d_model=24,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=40,
    decoder_ffn_dim=40,
    max_position_embeddings=16,
)
NEOX = dict(
    vocab_size=43,
    hidden_size=24,
    num_hidden_layers=1,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=16,
)
FALCON = dict(vocab_size=43, hidden_size=24, num_hidden_layers=1, num_attention_heads=4)
GPT_NEO = dict(vocab_size=43, hidden_size=24, num_layers=2, num_heads=3, max_position_embeddings=16)
GPTJ = dict(vocab_size=43, n_embd=24, n_layer=1, n_head=3, n_positions=16)
OPT = dict(
    vocab_size=43, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, ffn_dim=40, max_position_embeddings=16
)
T5 = dict(vocab_size=43, d_model=24, num_layers=1, num_heads=3, d_ff=40)

REFUSED = [
    ("bart", BART, dict(decoder_ffn_dim=48), "encoder_ffn_dim=40, decoder_ffn_dim=48"),
    ("falcon", FALCON, dict(alibi=True), "alibi=True"),
    ("falcon", FALCON, dict(new_decoder_architecture=True, parallel_attn=False), "parallel_attn=False"),
    ("gpt_neo", GPT_NEO, dict(attention_types=[[["global", "sparse"], 1]]), r"attention_types \['sparse'\]"),
    ("gpt_neo", GPT_NEO, dict(attention_types=[[["global", "local"], 2]]), "num_layers=2, and attention_types for 4"),
    ("gptj", GPTJ, dict(rotary_dim=None), "rotary_dim=null"),
    ("marian", BART, dict(decoder_vocab_size=50), "vocab_size=43, decoder_vocab_size=50"),
    ("marian", BART, dict(share_encoder_decoder_embeddings=False), "share_encoder_decoder_embeddings=False"),
    ("opt", OPT, dict(word_embed_proj_dim=16), "word_embed_proj_dim=16, hidden_size=24"),
    ("t5", T5, dict(feed_forward_proj="sparse-relu"), "feed_forward_proj='sparse-relu'"),
    ("t5", T5, dict(is_encoder_decoder=False), "is_encoder_decoder=False"),
]


@pytest.mark.parametrize(
    ("family", "config", "changes", "message"), REFUSED, ids=lambda x: x if isinstance(x, str) else ""
)
def test_what_is_not_implemented_is_named(family, config, changes, message):
    find(family).read_config(config | ({"attention_types": [[["global"], 2]]} if family == "gpt_neo" else {}))
    with pytest.raises(ValueError, match=message):
        find(family).read_config(config | changes)


def test_older_names():
    bloom = find("bloom").read_config(dict(vocab_size=43, n_embed=24, n_layer=2, num_attention_heads=3, n_inner=None))[
        0
    ]
    assert (bloom.hidden_dim, bloom.num_heads, bloom.intermediate_dim) == (24, 3, 96)
    neox, unknown = find("gpt_neox").read_config(NEOX | dict(rotary_pct=0.5, rotary_emb_base=500))
    assert (neox.position["fraction"], neox.position["base"], unknown) == (0.5, 500.0, [])
    written = find("gpt_neox").write_config(neox)
    assert (written["rotary_pct"], written["rope_parameters"]["partial_rotary_factor"]) == (0.5, 0.5)


def test_a_yes_or_no_does_not_stand_for_a_third_value():
    neox = find("gpt_neox").read_config(NEOX)[0]
    with pytest.raises(ValueError, match=r"yes or no for parallel.*'shared_norm'"):
        find("gpt_neox").write_config(neox.replace(parallel="shared_norm"))


@pytest.mark.parametrize("rotary_dim", [2, 6, 14, 28])
def test_a_rotary_width_survives_as_a_fraction(rotary_dim):
    from keras_tfm.layers import RotaryEmbedding

    config = find("gptj").read_config(GPTJ | dict(n_embd=147, rotary_dim=rotary_dim))[0]
    options = {key: value for key, value in config.position.items() if key != "kind"}
    assert RotaryEmbedding(**options).rotated_dim(49) == rotary_dim
    assert find("gptj").write_config(config)["rotary_dim"] == rotary_dim

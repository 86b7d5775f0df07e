"""Published models' parameter counts, from their published config.json alone; nothing is allocated."""

from __future__ import annotations

import pytest

import keras_tfm as tfm
from keras_tfm import architectures
from keras_tfm.ops.backend import without_allocating


def bert_like(model_type: str, **sizes) -> dict:
    common = dict(
        model_type=model_type,
        vocab_size=30_522,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=512,
        type_vocab_size=2,
    )
    return common | sizes


def albert(width: int, layers: int, heads: int, **more) -> dict:
    sizes = dict(vocab_size=30_000, embedding_size=128, hidden_size=width, num_hidden_layers=layers)
    return bert_like("albert", **sizes, num_attention_heads=heads, intermediate_size=4 * width, **more)


def distilbert(vocabulary: int) -> dict:
    return dict(
        model_type="distilbert",
        vocab_size=vocabulary,
        dim=768,
        n_layers=6,
        n_heads=12,
        hidden_dim=3072,
        max_position_embeddings=512,
    )


def t5(width: int, layers: int, heads: int, inner: int, head_dim: int = 64) -> dict:
    return dict(
        model_type="t5",
        vocab_size=32_128,
        d_model=width,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        d_ff=inner,
        d_kv=head_dim,
        feed_forward_proj="relu",
        tie_word_embeddings=True,
    )


def bart(width: int, layers: int, heads: int) -> dict:
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", layers), ("attention_heads", heads), ("ffn_dim", 4 * width))
    }
    return dict(model_type="bart", vocab_size=50_265, d_model=width, max_position_embeddings=1024, **sides)


def decoder(
    model_type: str, vocabulary: int, width: int, layers: int, heads: int, groups: int, inner: int, **more
) -> dict:
    common = dict(
        model_type=model_type,
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=inner,
        max_position_embeddings=4096,
    )
    return common | more


LLAMA_3 = dict(
    model_type="llama",
    vocab_size=128_256,
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14_336,
    max_position_embeddings=8192,
    rope_theta=500_000.0,
)
QWEN = dict(
    model_type="qwen2",
    vocab_size=151_936,
    hidden_size=896,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    intermediate_size=4864,
    max_position_embeddings=32_768,
    tie_word_embeddings=True,
    rope_theta=1e6,
)
OPT = dict(
    model_type="opt",
    vocab_size=50_272,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    ffn_dim=3072,
    max_position_embeddings=2048,
    word_embed_proj_dim=768,
)
MODERNBERT = dict(
    model_type="modernbert",
    vocab_size=50_368,
    hidden_size=768,
    num_hidden_layers=22,
    num_attention_heads=12,
    intermediate_size=1152,
    local_attention=128,
    global_attn_every_n_layers=3,
    global_rope_theta=160_000.0,
    local_rope_theta=10_000.0,
)
DEBERTA_V3 = bert_like(
    "deberta-v2",
    vocab_size=128_100,
    type_vocab_size=0,
    relative_attention=True,
    position_buckets=256,
    max_relative_positions=-1,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    pos_att_type="p2c|c2p",
    position_biased_input=False,
)
# From the papers and the reference implementation; OPT's table has 2 rows more than KerasHub's 2048 (125,237,760).
PUBLISHED = {
    "distilbert uncased": (distilbert(30_522), 66_362_880),
    "distilbert cased": (distilbert(28_996), 65_190_912),
    "roberta base": (
        bert_like("roberta", vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1),
        124_645_632,
    ),
    "albert base": (albert(768, 12, 12), 11_683_584),
    "albert large": (albert(1024, 24, 16), 17_683_968),
    "albert xlarge": (albert(2048, 24, 16), 58_724_864),
    "albert xxlarge": (albert(4096, 12, 64), 222_595_584),
    "xlm-roberta base": (
        bert_like("xlm-roberta", vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1),
        278_043_648,
    ),
    "electra small": (
        bert_like("electra", hidden_size=256, num_attention_heads=4, intermediate_size=1024),
        13_483_008,
    ),
    "electra base": (bert_like("electra", embedding_size=768), 108_891_648),
    "mpnet base": (bert_like("mpnet", vocab_size=30_527, max_position_embeddings=514), 109_486_464),
    "modernbert base": (MODERNBERT, 149_014_272),
    "modernbert large": (
        MODERNBERT | dict(hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, intermediate_size=2624),
        394_781_696,
    ),
    "deberta v3 base": (DEBERTA_V3, 183_831_552),
    "opt 125m": (OPT, 125_237_760 + 2 * 768),
    "bart base": (bart(768, 6, 12), 139_420_416),
    "bart large": (bart(1024, 12, 16), 406_291_456),
    "t5 small": (t5(512, 6, 8, 2048), 60_506_624),
    "t5 base": (t5(768, 12, 12, 3072), 222_903_552),
    "t5 large": (t5(1024, 24, 16, 4096), 737_668_096),
    "t5 3b": (t5(1024, 24, 32, 16_384, 128), 2_851_598_336),
    "llama 3 8b": (LLAMA_3, 8_030_261_248),
    "qwen 2.5 0.5b": (QWEN, 494_032_768),
    "mistral 7b": (decoder("mistral", 32_000, 4096, 32, 32, 8, 14_336), 7_241_732_096),
    "mixtral 8x7b": (decoder("mixtral", 32_000, 4096, 32, 32, 8, 14_336), 46_702_792_704),
    "qwen 1.5 moe": (decoder("qwen2_moe", 151_936, 2048, 24, 16, 16, 5632), 14_315_784_192),
    "qwen 3 30b": (
        decoder("qwen3_moe", 151_936, 2048, 48, 32, 4, 6144, head_dim=128, num_experts=128, num_experts_per_tok=8),
        30_532_122_624,
    ),
    "gpt-oss 20b": (
        decoder("gpt_oss", 201_088, 2880, 24, 64, 8, 2880, head_dim=64, num_local_experts=32),
        20_914_757_184,
    ),
    "qwen 3 0.6b": (
        decoder("qwen3", 151_936, 1024, 28, 16, 8, 3072, head_dim=128, tie_word_embeddings=True),
        596_049_920,
    ),
    "gemma 2b": (decoder("gemma", 256_000, 2048, 18, 8, 1, 16_384, head_dim=256), 2_506_172_416),
    "gemma 2 2b": (decoder("gemma2", 256_000, 2304, 26, 8, 4, 9216, head_dim=256), 2_614_341_888),
    "gemma 3 1b": (decoder("gemma3_text", 262_144, 1152, 26, 4, 1, 6912, head_dim=256), 999_885_952),
    "smollm 3 3b": (decoder("smollm3", 128_256, 2048, 36, 16, 4, 11_008), 3_075_098_624),
    "olmo 2 7b": (decoder("olmo2", 100_352, 4096, 32, 32, 32, 11_008), 7_298_617_344),
    "phi 3 mini": (decoder("phi3", 32_064, 3072, 32, 32, 32, 8192), 3_821_079_552),
    "phi 2": (decoder("phi", 51_200, 2560, 32, 32, 32, 10_240), 2_779_683_840 - 51_200),  # without the logits' bias
    "starcoder 2 3b": (decoder("starcoder2", 49_152, 3072, 30, 24, 2, 12_288), 3_030_371_328),
    "stablelm 2 1.6b": (decoder("stablelm", 100_352, 2048, 24, 32, 32, 5632, use_qkv_bias=True), 1_644_515_328),
    "command r": (decoder("cohere", 256_000, 8192, 40, 64, 64, 22_528), 34_980_831_232),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    config, count = PUBLISHED[name]
    ours, _ = architectures.find(config["model_type"]).read_config(config)
    with without_allocating():
        model = tfm.Backbone(ours.replace(head_bias=False))
    assert model.count_params() == count

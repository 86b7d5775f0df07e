"""Small random models of every family, for comparison with `transformers`: odd sizes, every option that matters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"

# transformers' keywords of most decoders. Heads of another width than width / heads, fewer key/value heads, a
# vocabulary that is no multiple of 8.
DECODER = dict(
    vocab_size=43,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=32,
    tie_word_embeddings=False,
)
# And of BART and its relatives.
SEQ2SEQ = dict(
    vocab_size=43,
    d_model=24,
    encoder_layers=2,
    decoder_layers=1,
    encoder_attention_heads=3,
    decoder_attention_heads=3,
    encoder_ffn_dim=40,
    decoder_ffn_dim=40,
    max_position_embeddings=19,
    bos_token_id=2,
    eos_token_id=2,
    forced_eos_token_id=2,
    decoder_start_token_id=2,
)
ROPE = dict(rope_theta=5000.0, rope_type="default")


@dataclass(frozen=True)
class Case:
    """A family in `transformers`.

    Attributes:
        config: Class name of its configuration.
        options: Keywords of that.
        models: Our class name to theirs.
        variants: Name to keywords that differ from `options`; each is compared with the first of `models`, or with the one
            that its name begins with ("TextClassifier: mean").
        pad: Token id at padded places.
        left: Also compare a left-padded row.
    """

    config: str
    options: dict[str, Any]
    models: dict[str, str]
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    pad: int = 0
    left: bool = True

    def task(self, variant: str) -> str:
        """The one of `models` that a variant is compared with."""
        task = variant.partition(":")[0]
        return task if task in self.models else next(iter(self.models))


def decoder_models(name: str, *tasks: str, base: str | None = None) -> dict[str, str]:
    every = {
        "CausalLM": f"{name}ForCausalLM",
        "Backbone": base or f"{name}Model",
        "TextClassifier": f"{name}ForSequenceClassification",
        "TokenClassifier": f"{name}ForTokenClassification",
        "QuestionAnswerer": f"{name}ForQuestionAnswering",
    }
    return {task: every[task] for task in tasks or every}


ENCODER = dict(
    vocab_size=43,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=19,
    type_vocab_size=3,
    layer_norm_eps=1e-5,
)


def encoder_models(name: str, *tasks: str) -> dict[str, str]:
    every = {
        "MaskedLM": f"{name}ForMaskedLM",
        "Backbone": f"{name}Model",
        "TextClassifier": f"{name}ForSequenceClassification",
        "TokenClassifier": f"{name}ForTokenClassification",
        "QuestionAnswerer": f"{name}ForQuestionAnswering",
    }
    return {task: every[task] for task in tasks or every}


def yarn(**more: Any) -> dict[str, Any]:
    return dict(rope_type="yarn", rope_theta=5000.0, factor=4.0, original_max_position_embeddings=8, **more)


FAMILIES: dict[str, Case] = {
    "llama": Case(
        "LlamaConfig",
        DECODER | dict(head_dim=8, rope_parameters=ROPE),
        decoder_models("Llama"),
        {
            "tied, biases": dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
            "llama 3": dict(
                rope_parameters=dict(
                    rope_type="llama3",
                    rope_theta=5000.0,
                    factor=8.0,
                    low_freq_factor=1.0,
                    high_freq_factor=4.0,
                    original_max_position_embeddings=16,
                )
            ),
            "linear": dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0)),
            "yarn": dict(rope_parameters=yarn()),
            "dynamic": dict(
                max_position_embeddings=8, rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)
            ),
        },
    ),
    "mistral": Case(
        "MistralConfig",
        DECODER | dict(head_dim=8, rope_parameters=ROPE, sliding_window=4),
        decoder_models("Mistral"),
        {"no window": dict(sliding_window=None), "tied, yarn": dict(tie_word_embeddings=True, rope_parameters=yarn())},
    ),
    "qwen2": Case(
        "Qwen2Config",
        DECODER | dict(rope_parameters=ROPE),
        decoder_models("Qwen2"),
        {
            "tied": dict(tie_word_embeddings=True),
            "windows": dict(num_hidden_layers=3, use_sliding_window=True, sliding_window=4, max_window_layers=1),
            "all windows": dict(use_sliding_window=True, sliding_window=4, max_window_layers=0),
        },
    ),
    "qwen3": Case(
        "Qwen3Config",
        DECODER | dict(head_dim=8, rope_parameters=ROPE),
        decoder_models("Qwen3"),
        {
            "tied, biases": dict(tie_word_embeddings=True, attention_bias=True, rms_norm_eps=1e-3),
            "types": dict(
                num_hidden_layers=3,
                use_sliding_window=True,
                sliding_window=4,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            ),
        },
    ),
    "mixtral": Case(
        "MixtralConfig",
        DECODER | dict(head_dim=8, rope_parameters=ROPE, num_local_experts=5, num_experts_per_tok=2),
        decoder_models("Mixtral"),
        {"tied, window, one": dict(tie_word_embeddings=True, sliding_window=4, num_experts_per_tok=1)},
    ),
    "qwen2_moe": Case(
        "Qwen2MoeConfig",
        DECODER
        | dict(
            rope_parameters=ROPE,
            num_experts=5,
            num_experts_per_tok=3,
            moe_intermediate_size=12,
            shared_expert_intermediate_size=20,
        ),
        decoder_models("Qwen2Moe"),
        {
            "tied, normalized, no biases": dict(tie_word_embeddings=True, norm_topk_prob=True, qkv_bias=False),
            "some dense, windows": dict(
                num_hidden_layers=4,
                mlp_only_layers=[0],
                decoder_sparse_step=2,
                use_sliding_window=True,
                sliding_window=4,
                max_window_layers=2,
            ),
            "dense": dict(mlp_only_layers=[0, 1]),
        },
    ),
    "qwen3_moe": Case(
        "Qwen3MoeConfig",
        DECODER
        | dict(head_dim=8, rope_parameters=ROPE, num_experts=5, num_experts_per_tok=3, moe_intermediate_size=12),
        decoder_models("Qwen3Moe"),
        {
            "tied, normalized, biases": dict(tie_word_embeddings=True, norm_topk_prob=True, attention_bias=True),
            "some dense, windows": dict(
                num_hidden_layers=3, decoder_sparse_step=2, use_sliding_window=True, sliding_window=4
            ),
        },
    ),
    "gpt_oss": Case(
        "GptOssConfig",
        DECODER
        | dict(
            num_hidden_layers=3,
            head_dim=8,
            num_local_experts=5,
            num_experts_per_tok=2,
            sliding_window=4,
            swiglu_limit=0.5,
            rope_parameters=yarn(truncate=False, beta_fast=32.0, beta_slow=1.0),
        ),
        decoder_models("GptOss", "CausalLM", "Backbone", "TextClassifier", "TokenClassifier"),
        {
            "tied, no biases": dict(tie_word_embeddings=True, attention_bias=False, rope_parameters=ROPE),
            "full": dict(layer_types=["full_attention"] * 3),
        },
    ),
    "gemma": Case(
        "GemmaConfig",
        DECODER | dict(head_dim=8, rope_parameters=ROPE, tie_word_embeddings=True),
        decoder_models("Gemma", "CausalLM", "Backbone", "TextClassifier", "TokenClassifier"),
        {"untied, biases": dict(tie_word_embeddings=False, attention_bias=True, hidden_act="silu")},
    ),
    "gemma2": Case(
        "Gemma2Config",
        DECODER
        | dict(
            num_hidden_layers=3,
            head_dim=8,
            rope_parameters=ROPE,
            tie_word_embeddings=True,
            sliding_window=4,
            query_pre_attn_scalar=5,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        decoder_models("Gemma2", "CausalLM", "Backbone", "TextClassifier", "TokenClassifier"),
        {
            "no caps, biases": dict(attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True),
            "full": dict(layer_types=["full_attention"] * 3),
        },
    ),
    "gemma3_text": Case(
        "Gemma3TextConfig",
        DECODER
        | dict(
            num_hidden_layers=4,
            head_dim=8,
            tie_word_embeddings=True,
            sliding_window=4,
            query_pre_attn_scalar=5,
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=dict(full_attention=ROPE, sliding_attention=dict(rope_theta=100.0, rope_type="default")),
        ),
        decoder_models("Gemma3", "CausalLM")
        | {"Backbone": "Gemma3TextModel", "TextClassifier": "Gemma3TextForSequenceClassification"},
        {
            "linear, cap": dict(
                rope_parameters=dict(
                    full_attention=dict(rope_theta=1e6, rope_type="linear", factor=8.0),
                    sliding_attention=dict(rope_theta=100.0, rope_type="default"),
                ),
                final_logit_softcapping=3.0,
                attention_bias=True,
            ),
            "local": dict(layer_types=["sliding_attention"] * 4),
            "global": dict(layer_types=["full_attention"] * 4),
        },
    ),
    "smollm3": Case(
        "SmolLM3Config",
        DECODER | dict(num_hidden_layers=4, rope_parameters=ROPE, tie_word_embeddings=True),
        decoder_models("SmolLM3"),
        {
            "untied, biases": dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
            "windows": dict(use_sliding_window=True, sliding_window=4, no_rope_layer_interval=2),
            "list": dict(no_rope_layers=[0, 1, 1, 0]),
            "no positions": dict(no_rope_layers=[0, 0, 0, 0]),
            "types": dict(
                use_sliding_window=True,
                sliding_window=4,
                layer_types=["sliding_attention", "full_attention", "full_attention", "full_attention"],
            ),
        },
    ),
    "olmo2": Case(
        "Olmo2Config",
        DECODER | dict(rope_parameters=ROPE),
        decoder_models("Olmo2", "CausalLM", "Backbone", "TextClassifier"),
        {"tied, biases": dict(tie_word_embeddings=True, attention_bias=True, rms_norm_eps=1e-3)},
    ),
    "starcoder2": Case(
        "Starcoder2Config",
        DECODER | dict(rope_parameters=ROPE, tie_word_embeddings=True),
        decoder_models("Starcoder2", "CausalLM", "Backbone", "TextClassifier", "TokenClassifier"),
        {"untied, no biases, window": dict(tie_word_embeddings=False, use_bias=False, sliding_window=4)},
    ),
    "stablelm": Case(
        "StableLmConfig",
        DECODER | dict(hidden_size=64, rope_parameters=ROPE | dict(partial_rotary_factor=0.25)),
        decoder_models("StableLm", "CausalLM", "Backbone", "TextClassifier", "TokenClassifier"),
        {
            "parallel": dict(use_parallel_residual=True),
            "tied, biases": dict(tie_word_embeddings=True, use_qkv_bias=True, hidden_act="gelu", layer_norm_eps=1e-3),
        },
    ),
    "phi": Case(
        "PhiConfig",
        DECODER | dict(hidden_size=32, rope_parameters=ROPE | dict(partial_rotary_factor=0.5)),
        decoder_models("Phi", "CausalLM", "Backbone", "TextClassifier", "TokenClassifier"),
        {"tied, qk norm": dict(tie_word_embeddings=True, qk_layernorm=True, hidden_act="relu", layer_norm_eps=1e-3)},
    ),
    "cohere": Case(
        "CohereConfig",
        DECODER | dict(rope_parameters=ROPE, tie_word_embeddings=True, logit_scale=0.5),
        decoder_models("Cohere", "CausalLM", "Backbone"),
        {
            "untied, biases": dict(tie_word_embeddings=False, attention_bias=True, layer_norm_eps=1e-3),
            "qk norm": dict(use_qk_norm=True, layer_norm_eps=1e-3),
        },
    ),
    "phi3": Case(
        "Phi3Config",
        DECODER | dict(rope_parameters=ROPE),
        decoder_models("Phi3", "CausalLM", "Backbone", "TextClassifier", "TokenClassifier"),
        {
            "tied, window": dict(tie_word_embeddings=True, sliding_window=4),
            "partial": dict(num_attention_heads=2, rope_parameters=ROPE | dict(partial_rotary_factor=0.5)),
            "long": dict(
                original_max_position_embeddings=8,
                rope_parameters=ROPE
                | dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.2], long_factor=[1.5, 2.0, 4.0]),
            ),
            "short": dict(
                original_max_position_embeddings=16,
                rope_parameters=ROPE
                | dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.2], long_factor=[1.5, 2.0, 4.0]),
            ),
        },
    ),
    "gpt2": Case(
        "GPT2Config",
        dict(vocab_size=43, n_embd=24, n_layer=2, n_head=3, n_positions=19, pad_token_id=0),
        {
            "CausalLM": "GPT2LMHeadModel",
            "Backbone": "GPT2Model",
            "TextClassifier": "GPT2ForSequenceClassification",
            "TokenClassifier": "GPT2ForTokenClassification",
            "QuestionAnswerer": "GPT2ForQuestionAnswering",
        },
        {"narrow": dict(n_inner=40, activation_function="relu")},
    ),
    "gpt_neox": Case(
        "GPTNeoXConfig",
        dict(
            vocab_size=43,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            max_position_embeddings=32,
            rope_parameters=dict(rope_theta=5000.0, rope_type="default", partial_rotary_factor=0.25),
        ),
        decoder_models("GPTNeoX"),
        {
            "one after the other": dict(use_parallel_residual=False, hidden_act="gelu_new"),
            "tied, no biases": dict(tie_word_embeddings=True, attention_bias=False),
            "full, linear": dict(
                rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0, partial_rotary_factor=1.0)
            ),
        },
    ),
    "opt": Case(
        "OPTConfig",
        dict(
            vocab_size=43,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            ffn_dim=40,
            max_position_embeddings=19,
        ),
        decoder_models("OPT", "CausalLM", "Backbone", "TextClassifier", "QuestionAnswerer"),
        {
            "post": dict(do_layer_norm_before=False),
            "no last norm": dict(_remove_final_layer_norm=True, activation_function="gelu"),
            "bare": dict(enable_bias=False, layer_norm_elementwise_affine=False, tie_word_embeddings=False),
        },
    ),
    "bloom": Case(
        "BloomConfig",
        dict(vocab_size=43, hidden_size=24, n_layer=2, n_head=3),
        decoder_models("Bloom"),
        {"untied": dict(tie_word_embeddings=False, layer_norm_epsilon=1e-3)},
    ),
    "gptj": Case(
        "GPTJConfig",
        dict(vocab_size=43, n_embd=48, n_layer=2, n_head=2, n_positions=32, rotary_dim=10),
        decoder_models("GPTJ", "CausalLM", "Backbone", "TextClassifier", "QuestionAnswerer"),
        {"tied, narrow": dict(tie_word_embeddings=True, n_inner=40, activation_function="relu", rotary_dim=24)},
    ),
    "gpt_neo": Case(
        "GPTNeoConfig",
        dict(
            vocab_size=43,
            hidden_size=24,
            num_layers=3,
            num_heads=3,
            max_position_embeddings=19,
            attention_types=[[["global", "local"], 1], [["local"], 1]],
            window_size=4,
        ),
        decoder_models("GPTNeo"),
        {
            "global, untied": dict(
                attention_types=[[["global"], 3]],
                intermediate_size=40,
                activation_function="gelu",
                tie_word_embeddings=False,
            ),
        },
    ),
    "falcon": Case(
        "FalconConfig",
        dict(
            vocab_size=43,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_kv_heads=2,
            new_decoder_architecture=True,
            ffn_hidden_size=40,
            max_position_embeddings=32,
            rope_parameters=ROPE,
        ),
        decoder_models("Falcon"),
        {
            "one norm, biases": dict(num_ln_in_parallel_attn=1, bias=True, tie_word_embeddings=False),
            "7b": dict(new_decoder_architecture=False, ffn_hidden_size=None),
            "no multi-query": dict(new_decoder_architecture=False, multi_query=False, num_kv_heads=4),
            "one after the other": dict(new_decoder_architecture=False, parallel_attn=False),
        },
    ),
    "t5": Case(
        "T5Config",
        dict(
            vocab_size=43,
            d_model=24,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=3,
            d_kv=6,
            d_ff=40,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=9,
        ),
        {"Seq2SeqLM": "T5ForConditionalGeneration", "Backbone": "T5Model"},
        {
            "1.1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, layer_norm_epsilon=1e-3),
            "silu": dict(feed_forward_proj="gated-silu"),
            "gelu, not approximated": dict(feed_forward_proj="gated-gelu", dense_act_fn="gelu"),
            "tied, no scale": dict(feed_forward_proj="gelu", scale_decoder_outputs=False),
        },
    ),
    "mt5": Case(
        "MT5Config",
        dict(vocab_size=43, d_model=24, num_layers=2, num_heads=3, d_kv=6, d_ff=40, tie_word_embeddings=False),
        {"Seq2SeqLM": "MT5ForConditionalGeneration", "Backbone": "MT5Model"},
        {"tied": dict(tie_word_embeddings=True)},
    ),
    "bart": Case(
        "BartConfig",
        SEQ2SEQ,
        {"Seq2SeqLM": "BartForConditionalGeneration", "Backbone": "BartModel"},
        {"scaled": dict(scale_embedding=True, activation_function="gelu_new", decoder_layers=2)},
        left=False,
    ),
    "mbart": Case(
        "MBartConfig",
        SEQ2SEQ | dict(scale_embedding=True),
        {"Seq2SeqLM": "MBartForConditionalGeneration", "Backbone": "MBartModel"},
        left=False,
    ),
    "pegasus": Case(
        "PegasusConfig",
        SEQ2SEQ | dict(scale_embedding=True, activation_function="relu"),
        {"Seq2SeqLM": "PegasusForConditionalGeneration", "Backbone": "PegasusModel"},
        left=False,
    ),
    "marian": Case(
        "MarianConfig",
        SEQ2SEQ | dict(scale_embedding=True, activation_function="swish"),
        {"Seq2SeqLM": "MarianMTModel", "Backbone": "MarianModel"},
        left=False,
    ),
    "m2m_100": Case(
        "M2M100Config",
        SEQ2SEQ,
        {"Seq2SeqLM": "M2M100ForConditionalGeneration", "Backbone": "M2M100Model"},
        {"unscaled": dict(scale_embedding=False)},
        pad=1,
    ),
    "bert": Case("BertConfig", ENCODER, encoder_models("Bert"), {"gelu_new": dict(hidden_act="gelu_new")}, left=False),
    "roberta": Case(
        "RobertaConfig",
        ENCODER | dict(type_vocab_size=1),
        encoder_models("Roberta"),
        {"relu": dict(hidden_act="relu")},  # its masked-token head keeps gelu
        pad=1,
        left=False,
    ),
    "xlm-roberta": Case("XLMRobertaConfig", ENCODER, encoder_models("XLMRoberta"), pad=1, left=False),
    "camembert": Case("CamembertConfig", ENCODER, encoder_models("Camembert"), pad=1, left=False),
    "distilbert": Case(
        "DistilBertConfig",
        dict(vocab_size=43, dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=19),
        encoder_models("DistilBert"),
        {"relu, sinusoids": dict(activation="relu", sinusoidal_pos_embds=True)},
        left=False,
    ),
    "albert": Case(
        "AlbertConfig",
        ENCODER | dict(embedding_size=10, num_hidden_layers=4),
        encoder_models("Albert"),
        {
            "two groups": dict(num_hidden_groups=2, hidden_act="gelu"),
            "as wide": dict(embedding_size=24),
            "none shared": dict(num_hidden_groups=4),
        },
        left=False,
    ),
    "mpnet": Case(
        "MPNetConfig",
        {name: value for name, value in ENCODER.items() if name != "type_vocab_size"},
        encoder_models("MPNet"),
        {"relu": dict(hidden_act="relu")},
        pad=1,
        left=False,
    ),
    "modernbert": Case(
        "ModernBertConfig",
        dict(
            vocab_size=43,
            hidden_size=24,
            num_hidden_layers=5,
            num_attention_heads=3,
            intermediate_size=40,
            max_position_embeddings=32,
            local_attention=6,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
        encoder_models("ModernBert"),
        {
            "all biases": dict(attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True),
            "untied, bare, relu": dict(tie_word_embeddings=False, decoder_bias=False, classifier_activation="relu"),
            "bases": dict(
                hidden_activation="relu",
                layer_types=["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
                rope_parameters=dict(
                    full_attention=yarn() | dict(rope_theta=500.0),
                    sliding_attention=dict(rope_type="default", rope_theta=50.0),
                ),
            ),
            "one block": dict(num_hidden_layers=1),
            "TextClassifier: mean": dict(classifier_pooling="mean", classifier_bias=True, norm_bias=True),
            "TokenClassifier: gelu_new": dict(classifier_activation="gelu_new", norm_eps=1e-3),
        },
        left=False,
    ),
    "deberta-v2": Case(
        "DebertaV2Config",
        ENCODER
        | dict(
            type_vocab_size=0,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            position_biased_input=False,
            position_buckets=4,
            max_relative_positions=8,
            norm_rel_ebd="layer_norm",
        ),
        encoder_models("DebertaV2"),
        {
            "one row a distance, positions added": dict(
                position_buckets=-1, max_relative_positions=5, position_biased_input=True, norm_rel_ebd="none"
            ),
            "c2p": dict(pos_att_type="c2p", max_relative_positions=-1),
            "p2c": dict(pos_att_type="p2c", layer_norm_eps=1e-3, hidden_act="relu"),
            "not relative": dict(
                relative_attention=False, pos_att_type=None, position_biased_input=True, norm_rel_ebd="none"
            ),
            "another head": dict(legacy=False),
            "TextClassifier: tanh": dict(pooler_hidden_act="tanh"),
        },
        left=False,
    ),
    "nomic_bert": Case(
        "NomicBertConfig",
        ENCODER | dict(head_dim=6, rope_parameters=dict(rope_theta=500.0, rope_type="default")),
        encoder_models("NomicBert", "MaskedLM", "Backbone", "TextClassifier", "TokenClassifier"),
        {"gelu, linear": dict(hidden_act="gelu", rope_parameters=dict(rope_type="linear", rope_theta=1e3, factor=2.0))},
        left=False,
    ),
    "electra": Case(
        "ElectraConfig",
        ENCODER | dict(embedding_size=10),
        encoder_models("Electra"),
        {"relu, as wide": dict(hidden_act="relu", embedding_size=24)},
        left=False,
    ),
    "vit": Case(
        "ViTConfig",
        dict(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            image_size=[12, 8],
            patch_size=[4, 2],
            num_channels=5,
            layer_norm_eps=1e-3,
        ),
        {"ImageClassifier": "ViTForImageClassification", "Backbone": "ViTModel"},
        {
            "no bias": dict(qkv_bias=False, hidden_act="relu"),
            "square": dict(image_size=9, patch_size=3),
            "Backbone: no bias": dict(qkv_bias=False, initializer_range=0.3),
        },
    ),
}

"""Tiny models of every family, which together turn every numerical switch that `transformers` honours.

Left out, since `transformers` has the key and does not honour it: MPT's `expansion_ratio`, `no_bias`, `qk_ln`, `logit_scale`,
`learned_pos_emb`, `alibi`, `alibi_bias_max`, `prefix_lm`, `attn_type`. Left out, since they fail there: GPT-J without `rotary_dim`,
Falcon's `num_ln_in_parallel_attn=2` in the old architecture and `parallel_attn=False` in the new. Left out, since a token's logits then
depend on those after it: more tokens than the context, which is where rope of the type "dynamic" differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"

# Family -> names of the classes of `transformers` for its configuration and its model with a head over the vocabulary.
CLASSES: dict[str, tuple[str, str]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "gptj": ("GPTJConfig", "GPTJForCausalLM"),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "falcon": ("FalconConfig", "FalconForCausalLM"),
    "mpt": ("MptConfig", "MptForCausalLM"),
    "bert": ("BertConfig", "BertForMaskedLM"),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM"),
    "t5": ("T5Config", "T5ForConditionalGeneration"),
}
ENCODERS = ("bert", "roberta")


@dataclass(frozen=True, eq=False)  # by identity: its dicts have no hash
class Case:
    """One golden model.

    Attributes:
        name: Its folder under golden/.
        family: A key of CLASSES.
        config: Keyword arguments of the configuration's class.
        seed: Of weights and inputs. Another one if greedy generation came near a tie.
        dtype: "float32", or "bfloat16": the weights are rounded to it and saved so; outputs are float32 of the rounded weights.
        shard_bytes: Largest file of weights; None for one file.
        older: What `config.json` says in checkpoints of earlier versions: key -> value, None to leave the key out. The same model.
    """

    name: str
    family: str
    config: Mapping[str, Any]
    seed: int = 0
    dtype: str = "float32"
    shard_bytes: int | None = None
    older: Mapping[str, Any] = field(default_factory=dict)


def _gpt(**other: Any) -> dict[str, Any]:
    """GPT-2's and GPT-J's names for sizes."""
    return dict(dict(vocab_size=48, n_positions=96, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None), **other)


def _sizes(**other: Any) -> dict[str, Any]:
    """Everybody else's names."""
    sizes = dict(vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=96)
    return dict(sizes, bos_token_id=None, eos_token_id=None, **other)


def _llama(**other: Any) -> dict[str, Any]:
    return dict(_sizes(), **dict(dict(intermediate_size=24, rms_norm_eps=1e-5), **other))


def _rope(rope_type: str, **other: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, **other}


def _falcon(**other: Any) -> dict[str, Any]:
    return dict(_sizes(), **dict(dict(num_attention_heads=4, ffn_hidden_size=32), **other))


def _mpt(**other: Any) -> dict[str, Any]:
    return dict(dict(vocab_size=48, d_model=16, n_layers=2, n_heads=4, max_seq_len=96), **other)


def _bert(**other: Any) -> dict[str, Any]:
    return dict(dict(_sizes(), max_position_embeddings=32, intermediate_size=32), **other)


def _t5(**other: Any) -> dict[str, Any]:
    sizes = dict(vocab_size=48, d_model=16, d_kv=8, d_ff=24, num_heads=2, num_layers=2, decoder_start_token_id=0)
    return dict(dict(sizes, relative_attention_num_buckets=8, relative_attention_max_distance=12), **other)


_LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
_YARN = dict(factor=4.0, original_max_position_embeddings=24)
_YARN_RANGE = dict(_YARN, beta_fast=1.0, beta_slow=0.1)

CASES: tuple[Case, ...] = (
    Case("gpt2", "gpt2", _gpt(), seed=3),
    Case(
        "gpt2_inverse_layer",
        "gpt2",
        _gpt(n_layer=3, activation_function="relu", n_inner=24, scale_attn_by_inverse_layer_idx=True),
        seed=18,
    ),
    Case(
        "gpt2_unscaled",
        "gpt2",
        _gpt(activation_function="gelu", scale_attn_weights=False, reorder_and_upcast_attn=True, layer_norm_epsilon=1e-2)
        | dict(tie_word_embeddings=False),
    ),
    Case("gptj", "gptj", _gpt(rotary_dim=4), seed=6),
    Case("gptj_tied", "gptj", _gpt(rotary_dim=8, n_inner=24, activation_function="relu", tie_word_embeddings=True), seed=1),
    Case(
        "gpt_neox",
        "gpt_neox",
        _sizes(intermediate_size=32),
        older=dict(rope_parameters=None, rotary_pct=0.25, rotary_emb_base=10000),
        seed=8,
    ),
    Case(
        "gpt_neox_sequential",
        "gpt_neox",
        _sizes(intermediate_size=24, hidden_act="gelu_fast", use_parallel_residual=False, attention_bias=False)
        | dict(rotary_pct=0.5, rotary_emb_base=500.0, layer_norm_eps=1e-2),
        older=dict(rope_parameters=None, rotary_pct=0.5, rotary_emb_base=500.0),
        seed=2,
    ),
    Case(
        "gpt_neox_tied",
        "gpt_neox",
        _sizes(intermediate_size=32, hidden_act="gelu_new", tie_word_embeddings=True, rotary_pct=1.0)
        | dict(rope_scaling=_rope("linear", factor=2.0)),
        seed=9,
    ),
    Case("llama", "llama", _llama(), older=dict(rope_parameters=None, head_dim=None)),
    Case(
        "llama_gqa",
        "llama",
        _llama(num_attention_heads=4, num_key_value_heads=2, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
        | dict(rms_norm_eps=1e-2, rope_parameters=_rope("default", rope_theta=500.0)),
        older=dict(rope_parameters=None, rope_theta=500.0, rope_scaling=None),
        seed=1,
    ),
    Case(
        "llama_mqa",
        "llama",
        _llama(num_attention_heads=4, num_key_value_heads=1, head_dim=8, hidden_act="gelu", num_hidden_layers=3),
        seed=1,
    ),
    Case(
        "llama_linear",
        "llama",
        _llama(rope_parameters=_rope("linear", factor=4.0, rope_theta=10000.0)),
        older=dict(rope_parameters=None, rope_theta=10000.0, rope_scaling=dict(type="linear", factor=4.0)),
        seed=1,
    ),
    Case("llama_dynamic", "llama", _llama(rope_parameters=_rope("dynamic", factor=4.0, rope_theta=10000.0))),
    Case(
        "llama_llama3",
        "llama",
        _llama(head_dim=16, rope_parameters=_rope("llama3", rope_theta=10000.0, **_LLAMA3)),
        older=dict(rope_parameters=None, rope_theta=10000.0, rope_scaling=_rope("llama3", **_LLAMA3)),
    ),
    Case(
        "llama_yarn",
        "llama",
        _llama(head_dim=16, rope_parameters=_rope("yarn", rope_theta=10000.0, **_YARN)),
        older=dict(rope_parameters=None, rope_theta=10000.0, rope_scaling=dict(type="yarn", **_YARN)),
    ),
    Case(
        "llama_yarn_factor",
        "llama",
        _llama(head_dim=16, rope_parameters=_rope("yarn", rope_theta=10000.0, attention_factor=1.25, truncate=False, **_YARN_RANGE)),
    ),
    Case(
        "llama_yarn_mscale",
        "llama",
        _llama(head_dim=16, rope_parameters=_rope("yarn", rope_theta=10000.0, mscale=0.7, mscale_all_dim=1.3, **_YARN_RANGE)),
        seed=2,
    ),
    Case("llama_bfloat16", "llama", _llama(num_attention_heads=4, num_key_value_heads=2), dtype="bfloat16"),
    Case(
        "mistral",
        "mistral",
        _llama(num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=8),
        older=dict(rope_parameters=None, rope_theta=10000.0),
        seed=1,
    ),
    Case("mistral_tied", "mistral", _llama(num_key_value_heads=2, sliding_window=None, tie_word_embeddings=True)),
    Case(
        "mixtral",
        "mixtral",
        _llama(num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
        shard_bytes=16_000,
        older=dict(rope_parameters=None, rope_theta=1000000.0),
    ),
    Case(
        "mixtral_top1",
        "mixtral",
        _llama(num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=1, sliding_window=6, head_dim=4)
        | dict(tie_word_embeddings=True, intermediate_size=16, hidden_act="gelu"),
        seed=1,
    ),
    Case(
        "falcon_7b",
        "falcon",
        _falcon(multi_query=True, parallel_attn=True, bias=False),
        older=dict(rope_parameters=None, ffn_hidden_size=32, num_ln_in_parallel_attn=None, num_kv_heads=None),
        seed=9,
    ),
    Case("falcon_40b", "falcon", _falcon(new_decoder_architecture=True, num_kv_heads=2, bias=False), seed=3),
    Case(
        "falcon_11b",
        "falcon",
        _falcon(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, bias=True, tie_word_embeddings=False)
        | dict(layer_norm_epsilon=1e-2, activation="relu", rope_parameters=_rope("default", rope_theta=500.0)),
        older=dict(rope_parameters=None, rope_theta=500.0),
        seed=4,
    ),
    Case("falcon_rw", "falcon", _falcon(alibi=True, multi_query=False, parallel_attn=False, bias=True), seed=18),
    # Falcon rounds what ALiBi adds to bfloat16, which shows where slopes are no powers of two: from nine heads on.
    Case(
        "falcon_alibi",
        "falcon",
        _falcon(alibi=True, multi_query=False, parallel_attn=True, bias=False, num_attention_heads=12, hidden_size=24),
        seed=8,
    ),
    Case("falcon_sequential", "falcon", _falcon(multi_query=True, parallel_attn=False, bias=False), seed=1),
    Case("falcon_heads", "falcon", _falcon(multi_query=False, parallel_attn=True, bias=True, tie_word_embeddings=False)),
    Case("mpt", "mpt", _mpt(), seed=3),
    Case(
        "mpt_clipped",
        "mpt",
        _mpt(d_model=18, n_heads=3, attn_config=dict(clip_qkv=0.8, softmax_scale=0.9), layer_norm_epsilon=1e-2, tie_word_embeddings=False),
        seed=4,
    ),
    Case("mpt_unpaired", "mpt", _mpt(n_layers=3, d_model=12, n_heads=6), seed=7),
    Case("bert", "bert", _bert()),
    Case(
        "bert_untied",
        "bert",
        _bert(hidden_act="relu", type_vocab_size=3, layer_norm_eps=1e-2, num_hidden_layers=3, intermediate_size=24)
        | dict(tie_word_embeddings=False),
    ),
    Case("bert_tanh", "bert", _bert(hidden_act="gelu_new", num_attention_heads=4)),
    Case("roberta", "roberta", _bert(pad_token_id=1, type_vocab_size=1)),
    Case("roberta_untied", "roberta", _bert(hidden_act="relu", pad_token_id=0, type_vocab_size=2, tie_word_embeddings=False)),
    Case("t5", "t5", _t5(num_decoder_layers=3), seed=91),
    Case(
        "t5_gated",
        "t5",
        _t5(num_decoder_layers=1, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        older=dict(tie_word_embeddings=False, scale_decoder_outputs=None, is_gated_act=None, dense_act_fn=None),
        seed=33,
    ),
    # The published buckets: distances of 16, 32 and 64 lie on their edges, where a logarithm that is rounded otherwise takes the next.
    Case(
        "t5_gelu",
        "t5",
        _t5(feed_forward_proj="gelu", layer_norm_epsilon=1e-2, d_ff=48)
        | dict(relative_attention_num_buckets=32, relative_attention_max_distance=128),
        seed=71,
    ),
)
BY_NAME: dict[str, Case] = {case.name: case for case in CASES}

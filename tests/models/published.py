"""config.json's of the models that presets are of, as they stand at Hugging Face."""

from __future__ import annotations

from typing import Any

_SUMMARY = {
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip

# openai-community/gpt2, and -medium, -large, -xl
_GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1,
    "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768,
    "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, **_SUMMARY, "vocab_size": 50257,
}  # fmt: skip
_SPECIAL = {"n_special": 0, "predict_special_tokens": True}

# EleutherAI/gpt-j-6b
_GPTJ = {
    "activation_function": "gelu_new", "architectures": ["GPTJForCausalLM"], "attn_pdrop": 0.0, "bos_token_id": 50256, "embd_pdrop": 0.0,
    "eos_token_id": 50256, "gradient_checkpointing": False, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gptj",
    "n_embd": 4096, "n_head": 16, "n_inner": None, "n_layer": 28, "n_positions": 2048, "resid_pdrop": 0.0, "rotary": True,
    "rotary_dim": 64, "scale_attn_weights": True, **_SUMMARY, "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer",
    "transformers_version": "4.18.0.dev0", "use_cache": True, "vocab_size": 50400,
}  # fmt: skip

# EleutherAI/pythia-70m, ..., and gpt-neox-20b
_PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu", "hidden_size": 512,
    "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
    "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25,
    "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip


def _pythia(layers: int, width: int, heads: int, vocab: int = 50304, **other: Any) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
    return {**_PYTHIA, **sizes, "vocab_size": vocab, **other}


# huggyllama/llama-7b, ...; its first conversions say neither the context by its later name nor the heads of keys
_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02,
    "model_type": "llama", "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
# meta-llama/Llama-2-7b-hf, ...
_LLAMA2 = {**_LLAMA, "max_position_embeddings": 4096, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None}
# meta-llama/Meta-Llama-3-8B, ...
_LLAMA3 = {
    **_LLAMA2, "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001,
    "max_position_embeddings": 8192, "rope_theta": 500000.0, "vocab_size": 128256,
}  # fmt: skip
# meta-llama/Llama-3.1-8B, ..., Llama-3.2-1B, ...
_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}
_LLAMA31 = {**_LLAMA3, "max_position_embeddings": 131072, "mlp_bias": False, "rope_scaling": {"factor": 8.0, **_SCALING}}
_LLAMA32 = {**_LLAMA31, "rope_scaling": {"factor": 32.0, **_SCALING}, "tie_word_embeddings": True}


def _llama(base: dict[str, Any], layers: int, width: int, heads: int, ffn: int, kv_heads: int | None = 8, **other: Any) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": ffn, "num_attention_heads": heads}
    return {**base, **sizes, **({} if kv_heads is None else {"num_key_value_heads": kv_heads}), **other}


def _llama1(layers: int, width: int, heads: int, ffn: int, epsilon: float = 1e-06) -> dict[str, Any]:
    return _llama(_LLAMA, layers, width, heads, ffn, None, max_sequence_length=2048, pad_token_id=0, rms_norm_eps=epsilon)


# mistralai/Mistral-7B-v0.1, -v0.2, -v0.3
_MISTRAL = _llama(
    {**_LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "max_position_embeddings": 32768, "rms_norm_eps": 1e-05},
    32, 4096, 32, 14336, rope_theta=10000.0, sliding_window=4096,
)  # fmt: skip

# mistralai/Mixtral-8x7B-v0.1, mistral-community/Mixtral-8x22B-v0.1
_MIXTRAL = {
    **_MISTRAL, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "attention_dropout": 0.0, "num_experts_per_tok": 2,
    "num_local_experts": 8, "output_router_logits": False, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
}  # fmt: skip

# tiiuae/falcon-7b, -40b, -180B, -11B, -rw-1b
_FALCON = {
    "alibi": False, "apply_residual_connection_post_layernorm": False, "architectures": ["FalconForCausalLM"], "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"}, "bias": False, "bos_token_id": 11, "eos_token_id": 11,
    "hidden_dropout": 0.0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "falcon", "multi_query": True,
    "parallel_attn": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 65024,
}  # fmt: skip


def _falcon(layers: int, width: int, heads: int, **other: Any) -> dict[str, Any]:
    return {**_FALCON, "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, **other}


# mosaicml/mpt-7b, -30b
_MPT = {
    "architectures": ["MPTForCausalLM"],
    "attn_config": {
        "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False, "clip_qkv": None, "prefix_lm": False, "qk_ln": False, "softmax_scale": None,
    },
    "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig"}, "d_model": 4096, "emb_pdrop": 0, "embedding_fraction": 1.0,
    "expansion_ratio": 4, "init_config": {"name": "kaiming_normal_", "init_std": 0.02, "verbose": 0}, "init_device": "cpu",
    "learned_pos_emb": True, "logit_scale": None, "max_seq_len": 2048, "model_type": "mpt", "n_heads": 32, "n_layers": 32, "no_bias": True,
    "norm_type": "low_precision_layernorm", "resid_pdrop": 0, "tokenizer_name": "EleutherAI/gpt-neox-20b", "torch_dtype": "bfloat16",
    "use_cache": False, "verbose": 0, "vocab_size": 50432,
}  # fmt: skip

# google-bert/bert-base-uncased, ...
_BERT = {
    "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
    "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": True,
    "vocab_size": 30522,
}  # fmt: skip
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}

# FacebookAI/roberta-base, -large
_ROBERTA = {
    "architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
    "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "roberta", "num_attention_heads": 12, "num_hidden_layers": 12,
    "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265,
}  # fmt: skip

# google-t5/t5-small, ..., and google/flan-t5-small, ...
_T5 = {
    "architectures": ["T5ForConditionalGeneration"], "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
    "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
    "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32, "task_specific_params": {"summarization": {}},
    "vocab_size": 32128,
}  # fmt: skip
_FLAN = {**_T5, "feed_forward_proj": "gated-gelu", "relative_attention_max_distance": 128, "tie_word_embeddings": False, "use_cache": True}


def _t5(base: dict[str, Any], layers: int, width: int, heads: int, ffn: int, head_width: int = 64) -> dict[str, Any]:
    sizes = {"num_layers": layers, "d_model": width, "num_heads": heads, "d_ff": ffn, "d_kv": head_width}
    return {**base, **sizes, **({"num_decoder_layers": layers} if base is _FLAN else {})}


CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2:small": _GPT2,
    "gpt2:medium": {**_GPT2, **_SPECIAL, "n_embd": 1024, "n_head": 16, "n_layer": 24},
    "gpt2:large": {**_GPT2, "n_embd": 1280, "n_head": 20, "n_layer": 36},
    "gpt2:xl": {**_GPT2, "n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True},
    "gptj:6b": _GPTJ,
    "gpt_neox:20b": _pythia(44, 6144, 64, 50432, hidden_act="gelu_fast", attention_probs_dropout_prob=0, hidden_dropout_prob=0),
    "gpt_neox:pythia-70m": _PYTHIA,
    "gpt_neox:pythia-160m": _pythia(12, 768, 12),
    "gpt_neox:pythia-410m": _pythia(24, 1024, 16),
    # as written again by a later version, which says some things twice
    "gpt_neox:pythia-1b": _pythia(16, 2048, 8, attention_bias=True, partial_rotary_factor=0.25, rope_theta=10000, rope_scaling=None),
    "gpt_neox:pythia-1.4b": _pythia(24, 2048, 16),
    "gpt_neox:pythia-2.8b": _pythia(32, 2560, 32),
    "gpt_neox:pythia-6.9b": _pythia(32, 4096, 32, 50432),
    "gpt_neox:pythia-12b": _pythia(36, 5120, 40, 50688),
    "llama:7b": _llama1(32, 4096, 32, 11008),
    "llama:13b": _llama1(40, 5120, 40, 13824),
    "llama:33b": _llama1(60, 6656, 52, 17920),
    "llama:65b": _llama1(80, 8192, 64, 22016, 1e-05),
    "llama:2-7b": _llama(_LLAMA2, 32, 4096, 32, 11008, 32),
    "llama:2-13b": _llama(_LLAMA2, 40, 5120, 40, 13824, 40),
    "llama:2-70b": _llama(_LLAMA2, 80, 8192, 64, 28672),
    "llama:3-8b": _llama(_LLAMA3, 32, 4096, 32, 14336),
    "llama:3-70b": _llama(_LLAMA3, 80, 8192, 64, 28672),
    "llama:3.1-8b": _llama(_LLAMA31, 32, 4096, 32, 14336),
    "llama:3.1-70b": _llama(_LLAMA31, 80, 8192, 64, 28672),
    "llama:3.1-405b": _llama(_LLAMA31, 126, 16384, 128, 53248),
    "llama:3.2-1b": _llama(_LLAMA32, 16, 2048, 32, 8192, head_dim=64),
    "llama:3.2-3b": _llama(_LLAMA32, 28, 3072, 24, 8192, head_dim=128),
    "mistral:7b-v0.1": _MISTRAL,
    "mistral:7b-v0.2": {**_MISTRAL, "rope_theta": 1000000.0, "sliding_window": None, "attention_dropout": 0.0},
    "mistral:7b-v0.3": {**_MISTRAL, "rope_theta": 1000000.0, "sliding_window": None, "attention_dropout": 0.0, "vocab_size": 32768},
    "mixtral:8x7b": _MIXTRAL,
    "mixtral:8x22b": _llama(
        _MIXTRAL, 56, 6144, 48, 16384, max_position_embeddings=65536, rope_theta=1000000, router_aux_loss_coef=0.001,
        router_jitter_noise=0.0,
    ),
    "falcon:7b": _falcon(32, 4544, 71, new_decoder_architecture=False, num_kv_heads=71),
    "falcon:40b": _falcon(60, 8192, 128, new_decoder_architecture=True, num_kv_heads=8),
    "falcon:180b": _falcon(80, 14848, 232, new_decoder_architecture=True, num_kv_heads=8),
    "falcon:11b": _falcon(
        60, 4096, 32, new_decoder_architecture=True, num_kv_heads=8, num_ln_in_parallel_attn=1, activation="gelu", ff_factor=4,
        ffn_hidden_size=16384, max_position_embeddings=8192, rope_scaling=None, rope_theta=500042.0, tie_word_embeddings=False,
    ),
    "falcon:rw-1b": _falcon(
        24, 2048, 32, new_decoder_architecture=False, num_kv_heads=32, alibi=True, bias=True, multi_query=False, parallel_attn=False,
        bos_token_id=1, eos_token_id=2, vocab_size=50304,
    ),
    "mpt:7b": _MPT,
    "mpt:30b": {**_MPT, "d_model": 7168, "max_seq_len": 8192, "n_heads": 64, "n_layers": 48},
    "bert:base-uncased": _BERT,
    "bert:large-uncased": {**_BERT, **_LARGE},
    "bert:base-cased": {**_BERT, "vocab_size": 28996},
    "roberta:base": _ROBERTA,
    "roberta:large": {**_ROBERTA, **_LARGE},
    "t5:small": _t5(_T5, 6, 512, 8, 2048),
    "t5:base": _t5(_T5, 12, 768, 12, 3072),
    "t5:large": _t5(_T5, 24, 1024, 16, 4096),
    "t5:3b": _t5(_T5, 24, 1024, 32, 16384, 128),
    "t5:11b": _t5(_T5, 24, 1024, 128, 65536, 128),
    "t5:flan-small": _t5(_FLAN, 8, 512, 6, 1024),
    "t5:flan-base": _t5(_FLAN, 12, 768, 12, 2048),
    "t5:flan-large": _t5(_FLAN, 24, 1024, 16, 2816),
    "t5:flan-xl": _t5(_FLAN, 24, 2048, 32, 5120),
    "t5:flan-xxl": _t5(_FLAN, 24, 4096, 64, 10240),
}  # fmt: skip
"""By preset. Keys that tell nothing (`id2label`, the version that wrote it) are shortened or left out."""

SAID_BESIDES: dict[str, dict[str, Any]] = {
    # transformers' defaults; OpenAI's code has no dropout, nor does the paper speak of any
    "gpt2": {"dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1},
    # of the first conversions: the paper has no padding
    **{f"llama:{size}": {"pad_token": 0} for size in ("7b", "13b", "33b", "65b")},
}
"""By family or preset: fields that config.json has and the preset, on purpose, has not."""

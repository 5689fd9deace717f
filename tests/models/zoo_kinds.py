"""The architectures of the zoo: their configs, tokenizers, and where their MLP's branch ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig

WIDTH, LAYERS, HEADS, CONTEXT = 48, 4, 4, 256
SIZES: dict[str, Any] = {  # of which a config takes what it knows
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": WIDTH // HEADS,
    "intermediate_size": 96,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 12, "mamba_d_state": 8, "mamba_chunk_size": 8}


@dataclass(frozen=True)
class Kind:
    """An architecture.

    Attributes:
        type: transformers' model type.
        changes: of the config, against `SIZES`.
        words: what its tokenizer puts before a text: nothing though it has a BOS (``"plain"``),
            ``"bos"``, ``"eos"``, ``"two"`` tokens; ``"none"`` has no BOS at all.
        mlp: path within a block of the last module of the MLP's branch; None where there is none.
        normed_after: whether a norm stands behind the sum of stream and branch.
    """

    type: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    words: str = "plain"
    mlp: str | None = "mlp"
    normed_after: bool = False

    def config(self, vocabulary: int) -> Any:
        """The config of a tiny model."""
        default = AutoConfig.for_model(self.type)
        known = {*default.to_dict(), *type(default).attribute_map}
        sizes = {key: value for key, value in SIZES.items() if key in known}
        return AutoConfig.for_model(self.type, **{"vocab_size": vocabulary, **sizes, **self.changes})


MLA = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
WINDOW = {"sliding_window": 6}
MIXED = ["sliding_attention", "full_attention"] * 2
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
GRANITE = {"embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2}
JAMBA = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}
GPT_NEO = {"num_layers": LAYERS, "num_heads": HEADS, "attention_types": [[["global", "local"], 2]], "window_size": 6}

ZOO: dict[str, Kind] = {
    "Llama": Kind("llama", words="bos"),
    "Llama 3 (rope scaling, biases)": Kind(
        "llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
        "bos",
    ),
    "Llama 4 (text)": Kind(
        "llama4_text",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16,
        },
        "bos",
        "feed_forward",
    ),
    "Qwen 2": Kind("qwen2", words="none"),
    "Qwen 2 MoE": Kind("qwen2_moe", {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32}, "none"),
    "Qwen 3": Kind("qwen3", words="none"),
    "Qwen 3 MoE": Kind("qwen3_moe", {**EXPERTS, "num_experts": 4}, "none"),
    "Qwen3-Next": Kind(
        "qwen3_next", {**EXPERTS, **DELTA, "num_experts": 4, "shared_expert_intermediate_size": 32}, "none"
    ),
    "Qwen 3.5 (text)": Kind("qwen3_5_text", DELTA, "none"),
    "Gemma 1": Kind("gemma", words="bos"),
    "Gemma 2": Kind("gemma2", {**WINDOW, "query_pre_attn_scalar": 12}, "bos"),
    "Gemma 3": Kind("gemma3_text", {**WINDOW, "query_pre_attn_scalar": 12, "layer_types": MIXED}, "bos"),
    "Gemma 3n (text)": Kind(
        "gemma3n_text",
        {
            **WINDOW,
            "layer_types": MIXED,
            "vocab_size_per_layer_input": 300,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "laurel_rank": 8,
            "intermediate_size": [96] * LAYERS,
            "activation_sparsity_pattern": [0.0] * LAYERS,
        },
        "bos",
    ),
    "Gemma 4 (text)": Kind(
        "gemma4_text",
        {**WINDOW, "layer_types": MIXED, "vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8},
        "bos",
    ),
    "VaultGemma": Kind("vaultgemma", {**WINDOW, "query_pre_attn_scalar": 12, "layer_types": MIXED}, "bos"),
    "Mistral": Kind("mistral", WINDOW, "bos"),
    "Ministral": Kind("ministral", {**WINDOW, "layer_types": MIXED}, "bos"),
    "Ministral 3": Kind("ministral3", {}, "bos"),
    "Mixtral": Kind("mixtral", {"num_local_experts": 4}, "bos"),
    "Phi": Kind("phi"),
    "Phi-3": Kind("phi3", {"original_max_position_embeddings": CONTEXT}, "bos"),
    "Phi-3.5 MoE": Kind("phimoe", {"num_local_experts": 4}, "bos"),
    "OLMo 1": Kind("olmo"),
    "OLMo 1 (clipped)": Kind("olmo", {"clip_qkv": 0.3}),
    "OLMo 2": Kind("olmo2"),
    "OLMo 3": Kind("olmo3", {**WINDOW, "layer_types": MIXED}),
    "OLMoE": Kind("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "OLMo Hybrid": Kind("olmo_hybrid", {**DELTA, "linear_num_key_heads": 4}),
    "GPT-1": Kind("openai-gpt", {"n_positions": CONTEXT}, normed_after=True),
    "GPT-2": Kind("gpt2", {"n_positions": CONTEXT}),
    "GPT-Neo": Kind("gpt_neo", GPT_NEO),
    "GPT-J": Kind("gptj", {"rotary_dim": 8, "n_positions": CONTEXT}),
    "CodeGen": Kind("codegen", {"rotary_dim": 8, "n_positions": CONTEXT, "n_ctx": CONTEXT}),
    "GPT-NeoX (Pythia)": Kind("gpt_neox", {"rope_parameters": PARTIAL}),
    "GPT-NeoX (sequential)": Kind("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}),
    "gpt-oss": Kind("gpt_oss", {**WINDOW, "layer_types": MIXED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "OPT": Kind("opt", {"ffn_dim": 96, "word_embed_proj_dim": WIDTH}, "eos", "fc2"),
    "OPT (350m: post-norm, projected)": Kind(
        "opt", {"ffn_dim": 96, "word_embed_proj_dim": 24, "do_layer_norm_before": False}, "eos", "fc2", True
    ),
    "BLOOM": Kind("bloom", words="plain", mlp="mlp.dense_4h_to_h"),
    "Falcon (alibi)": Kind(
        "falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True, "num_kv_heads": HEADS}
    ),
    "Falcon (rotary, multi-query)": Kind("falcon", {"num_kv_heads": None}),
    "Falcon (new decoder)": Kind("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon (new decoder, one query a head)": Kind(
        "falcon", {"new_decoder_architecture": True, "multi_query": False, "num_kv_heads": HEADS}
    ),
    "Falcon 2 (new decoder, one norm)": Kind(
        "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "bias": True}
    ),
    "Falcon (alibi, parallel)": Kind("falcon", {"alibi": True, "multi_query": False, "num_kv_heads": HEADS}),
    "Falcon-H1": Kind(
        "falcon_h1",
        {
            **SSM,
            "mamba_d_ssm": 96,
            "lm_head_multiplier": 0.5,
            "embedding_multiplier": 2.0,
            "mlp_multipliers": [0.7, 0.6],
        },
        mlp="feed_forward",
    ),
    "StableLM": Kind("stablelm", {"use_qkv_bias": True, "rope_parameters": PARTIAL}),
    "StableLM 2 (parallel, q and k norms)": Kind(
        "stablelm", {"use_parallel_residual": True, "qk_layernorm": True, "rope_parameters": PARTIAL}
    ),
    "Cohere": Kind("cohere", {"logit_scale": 0.25}, "bos"),
    "Cohere (q and k norms)": Kind("cohere", {"logit_scale": 0.25, "use_qk_norm": True}, "bos"),
    "Cohere 2": Kind("cohere2", {**WINDOW, "logit_scale": 0.25, "layer_types": MIXED}, "bos"),
    "Granite": Kind("granite", GRANITE),
    "Granite MoE": Kind(
        "granitemoe", {**GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2}, mlp="block_sparse_moe"
    ),
    "Granite MoE Hybrid": Kind(
        "granitemoehybrid",
        {
            **GRANITE,
            **SSM,
            "num_local_experts": 0,
            "shared_intermediate_size": 64,
            "layer_types": ["mamba", "attention"] * 2,
        },
        mlp="shared_mlp",
    ),
    "SmolLM3": Kind("smollm3", {"no_rope_layers": [1, 1, 1, 0]}, "none"),
    "StarCoder 1 (GPT-BigCode)": Kind("gpt_bigcode", {"n_positions": CONTEXT}),
    "StarCoder 2": Kind("starcoder2", WINDOW),
    "Mamba": Kind("mamba", {"state_size": 8, "time_step_rank": 4}, mlp=None),
    "Mamba 2": Kind(
        "mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 12, "n_groups": 2, "chunk_size": 8}, mlp=None
    ),
    "Falcon Mamba": Kind("falcon_mamba", {"state_size": 8, "time_step_rank": 4}, mlp=None),
    "RWKV": Kind("rwkv", {"attention_hidden_size": WIDTH, "context_length": CONTEXT}, mlp="feed_forward"),
    "DeepSeek V2": Kind(
        "deepseek_v2",
        {
            **MLA,
            **EXPERTS,
            "head_dim": 4,
            "num_key_value_heads": HEADS,
            "n_routed_experts": 4,
            "first_k_dense_replace": 1,
        },
        "bos",
    ),
    "DeepSeek V3": Kind(
        "deepseek_v3",
        {
            **MLA,
            **EXPERTS,
            "head_dim": 4,
            "num_key_value_heads": HEADS,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        "bos",
    ),
    "MiniCPM3": Kind(
        "minicpm3", {**MLA, "head_dim": 4, "num_key_value_heads": HEADS, "dim_model_base": 16, "scale_emb": 3}, "bos"
    ),
    "Nemotron": Kind("nemotron", {"norm_eps": 1e-5}),
    "Nemotron-H": Kind(
        "nemotron_h",
        {
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 12,
            "n_groups": 2,
            "chunk_size": 8,
            "use_mamba_kernels": False,
            "num_hidden_layers": None,
        },
        mlp=None,
    ),
    "XGLM": Kind(
        "xglm", {"d_model": WIDTH, "num_layers": LAYERS, "attention_heads": HEADS, "ffn_dim": 96}, "eos", "fc2"
    ),
    "MPT": Kind("mpt", {"n_heads": HEADS, "max_seq_len": CONTEXT}, mlp="ffn.down_proj"),
    "GLM": Kind("glm", {}, "two"),
    "GLM-4": Kind("glm4", {}, "two"),
    "GLM-4 MoE": Kind(
        "glm4_moe", {**EXPERTS, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}, "two"
    ),
    "LFM2": Kind(
        "lfm2",
        {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
        "bos",
        "feed_forward",
    ),
    "LFM2 MoE": Kind(
        "lfm2_moe",
        {**EXPERTS, "layer_types": ["conv", "full_attention"] * 2, "num_experts": 4, "num_dense_layers": 1},
        "bos",
        "feed_forward",
    ),
    "HunYuan (dense)": Kind("hunyuan_v1_dense", {"eod_token_id": 1}, "bos"),
    "HunYuan (MoE)": Kind(
        "hunyuan_v1_moe", {"eod_token_id": 1, "sep_token_id": 2, "num_experts": 4, "moe_topk": 2}, "bos"
    ),
    "EXAONE 4": Kind("exaone4", {**WINDOW, "layer_types": MIXED}, "bos"),
    "ERNIE 4.5": Kind("ernie4_5", {}, "bos"),
    "ERNIE 4.5 MoE": Kind("ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32}, "bos"),
    "Apertus": Kind("apertus", {}, "bos"),
    "Seed-OSS": Kind("seed_oss", {}, "bos"),
    "Arcee": Kind("arcee", {}, "bos"),
    "BitNet": Kind("bitnet", {}, "bos"),
    "Helium": Kind("helium", {}, "bos"),
    "Jamba": Kind("jamba", {**JAMBA, "num_experts": 4}, "bos", "feed_forward"),
    "Zamba 2": Kind(
        "zamba2",
        {
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "mamba_headdim": 12,
            "chunk_size": 8,
            "num_key_value_heads": HEADS,
            "attention_head_dim": 24,
            "attention_hidden_size": 96,
            "adapter_rank": 8,
            "layers_block_type": ["linear_attention", "hybrid"] * 2,
            "num_mem_blocks": 1,
        },
        "bos",
    ),
    "Bamba": Kind("bamba", {**SSM, "attn_layer_indices": [1, 3]}, mlp="feed_forward"),
    "RecurrentGemma": Kind("recurrent_gemma", {"lru_width": WIDTH, "attention_window_size": 8}, "bos", "mlp_block"),
    "MiniMax": Kind("minimax", {"num_local_experts": 4, "block_size": 8}, "bos"),
    "Persimmon": Kind("persimmon", {}, "bos"),
    "BioGPT": Kind("biogpt", {}, "eos", "fc2"),
    "NanoChat": Kind("nanochat", {}, "bos"),
}

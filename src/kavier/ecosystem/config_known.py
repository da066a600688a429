"""Which fields of a config.json may stay unread, which are refused, and which are reported as left out."""

from __future__ import annotations

from collections.abc import Mapping

from kavier.ecosystem.config_fields import Fields

REFUSED: Mapping[str, str] = {
    "linear_num_key_heads": "linear attention",
    "linear_num_value_heads": "linear attention",
    "linear_attn_config": "linear attention",
    "full_attention_interval": "linear attention",
    "mamba_num_heads": "state-space layers",
    "mamba_n_heads": "state-space layers",
    "mamba_d_state": "state-space layers",
    "ssm_state_size": "state-space layers",
    "ssm_cfg": "state-space layers",
    "hybrid_override_pattern": "mixed layer kinds",
    "layers_block_type": "mixed layer kinds",
    "attn_layer_period": "mixed layer kinds",
    "block_configs": "layers of different shapes",
    "cross_attention_layers": "cross attention",
    "add_cross_attention": "cross attention",
    "is_encoder_decoder": "an encoder",
    "attention_chunk_size": "chunked attention",
    "index_topk": "DeepSeek sparse attention (its index cache and top-k)",
    "compress_ratios": "a compressed KV cache",
    "num_kv_shared_layers": "layers that share KV",
    "attention_k_eq_v": "keys used as values",
    "global_head_dim": "head sizes that differ by layer",
    "swa_num_key_value_heads": "KV heads that differ by layer",
    "hidden_size_per_layer_input": "per-layer embeddings",
    "shared_expert_intermediate_size": "a gated shared expert",
    "interleave_moe_layer_step": "experts on every n-th layer only",
    "attn_output_gate": "gated attention",
    "qk_layernorm": "norms of queries and keys in this family",
    "use_bidirectional_attention": "attention without a causal mask",
    "quantization": "MLX quantisation",
    "compression_config": "the old name of quantization_config",
}
"""Fields that, when on, change what is computed or cached."""

NOTED: Mapping[str, str] = {
    "num_nextn_predict_layers": "the multi-token-prediction layer is not served: its weights are not counted",
    "vision_config": "text only: the vision tower is neither loaded nor counted",
    "audio_config": "text only: the audio tower is neither loaded nor counted",
}

OFF_IS_HARMLESS = frozenset(
    {"attention_bias", "mlp_bias", "use_bias", "use_sliding_window", "use_qk_norm", *REFUSED, *NOTED}
)

_BOOKKEEPING = """
_name_or_path name_or_path architectures auto_map transformers_version transformers.js_config model_type
text_config tokenizer_class prefix finetuning_task task_specific_params problem_type id2label label2id
num_labels keys_to_ignore_at_inference unsloth_fixed unsloth_version gradient_checkpointing torchscript
tf_legacy_loss use_bfloat16 pruned_heads tie_encoder_decoder is_decoder cross_attention_hidden_size
chunk_size_feed_forward return_dict output_attentions output_hidden_states output_past use_cache
cache_implementation
attn_implementation _attn_implementation _attn_implementation_autoset use_flash_attn pretraining_tp ep_size
bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
decoder_start_token_id forced_bos_token_id forced_eos_token_id begin_suppress_tokens suppress_tokens
temperature top_k top_p typical_p repetition_penalty length_penalty diversity_penalty no_repeat_ngram_size
encoder_no_repeat_ngram_size exponential_decay_length_penalty bad_words_ids num_return_sequences num_beams
num_beam_groups do_sample early_stopping max_length min_length max_new_tokens remove_invalid_values
return_dict_in_generate output_scores
image_token_id image_token_index video_token_id video_token_index audio_token_id boi_token_index
eoi_token_index boi_token_id eoi_token_id vision_start_token_id vision_end_token_id vision_token_id
mm_tokens_per_image
"""
_TRAINING = """
initializer_range initializer_factor initializer_cutoff_factor attention_dropout attn_dropout attn_pdrop
embd_pdrop resid_pdrop hidden_dropout hidden_dropout_prob attention_probs_dropout_prob residual_dropout
embedding_dropout dropout classifier_dropout router_aux_loss_coef router_jitter_noise output_router_logits
aux_loss_alpha seq_aux
"""
_VALUES = """
hidden_act hidden_activation activation_function mlp_type norm_type rms_norm_eps layer_norm_eps
layer_norm_epsilon norm_eps norm_epsilon swiglu_limit rope_theta rope_scaling rope_parameters
rope_local_base_freq rope_interleave rope_interleaved partial_rotary_factor original_max_position_embeddings
initial_context_length attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar
attention_multiplier embedding_multiplier residual_multiplier logits_scaling norm_topk_prob scoring_func
n_group topk_group topk_method routed_scaling_factor
"""
HARMLESS = frozenset(f"{_BOOKKEEPING} {_TRAINING} {_VALUES}".split())
"""Fields of real config.json files that change neither shapes nor, beyond elementwise work, times:
names and tokens, training, and the values (not sizes) that activations, norms, RoPE and routers work with."""


def refuse_unmodelled(fields: Fields) -> None:
    """Refuse what changes the architecture.

    Raises:
        InputError: The field, and what it stands for.
    """
    for key, feature in REFUSED.items():
        if fields.is_on(key):
            raise fields.error(key, f"{feature} is not modelled, so its times and sizes would be wrong")


def left_out(fields: Fields) -> list[str]:
    """Notes on what is known to be left out."""
    return [note for key, note in NOTED.items() if fields.is_on(key)]


def unread(fields: Fields, idle: frozenset[str]) -> list[str]:
    """Fields that nobody read and that are not known to be harmless; `idle`: harmless in this family."""
    known = HARMLESS | NOTED.keys() | idle
    off = {key for key in OFF_IS_HARMLESS if not fields.is_on(key)}
    return sorted(set(fields.unread()) - known - off)

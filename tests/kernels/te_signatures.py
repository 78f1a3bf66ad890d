"""Parameters of what we and Megatron-Core use of Transformer Engine, as the sources in its wheel 2.20.2 have them.

`test_engine_wiring` holds the stand-in to this list, `tests/gpu/test_kernels_te.py` the package that is installed.
"""

SIGNATURES = {name: tuple(words.split()) for name, words in {
    "pytorch.Linear":
        """in_features out_features sequence_parallel fuse_wgrad_accumulation tp_group tp_size get_rng_state_tracker
        rng_tracker_name init_method bias return_bias params_dtype parallel_mode parameters_split device ub_overlap_ag ub_overlap_rs
        ub_overlap_rs_dgrad ub_bulk_dgrad ub_bulk_wgrad ub_name delay_wgrad_compute symmetric_ar_type save_original_input name""",
    "pytorch.Linear.forward": "self inp is_first_microbatch fp8_output fp8_grad",
    "pytorch.LayerNormLinear":
        """in_features out_features eps sequence_parallel fuse_wgrad_accumulation tp_group tp_size get_rng_state_tracker
        init_method bias normalization return_bias params_dtype parallel_mode return_layernorm_output return_layernorm_output_gathered
        parameters_split zero_centered_gamma device ub_overlap_ag ub_overlap_rs ub_overlap_rs_dgrad ub_bulk_wgrad ub_bulk_dgrad
        ub_name delay_wgrad_compute symmetric_ar_type name""",
    "pytorch.LayerNormLinear.forward": "self inp is_first_microbatch fp8_output fp8_grad",
    "pytorch.DotProductAttention":
        """num_attention_heads kv_channels num_gqa_groups attention_dropout qkv_format attn_mask_type window_size
        bottom_right_diagonal softcap sequence_parallel tp_size get_rng_state_tracker tp_group layer_number attention_type
        cp_group cp_global_ranks cp_stream cp_comm_type softmax_scale softmax_type return_max_logit name""",
    "pytorch.DotProductAttention.forward":
        """self query_layer key_layer value_layer attention_mask qkv_format cu_seqlens_q cu_seqlens_kv cu_seqlens_q_padded
        cu_seqlens_kv_padded max_seqlen_q max_seqlen_kv attn_mask_type window_size bottom_right_diagonal softcap
        checkpoint_core_attention core_attention_bias_type core_attention_bias alibi_slopes fast_zero_fill inference_params
        pad_between_seqs fp8_output bf16_backward num_splits score_mod score_mod_bprop score_mod_tensors score_mod_bprop_tensors
        qkv_layer kv_layer qkv_interleave_dim thd_attention_policies thd_attention_policy_dispatch""",
    "pytorch.optimizers.FusedAdam":
        """params lr betas eps weight_decay amsgrad bias_correction adam_w_mode capturable master_weights master_weight_dtype
        exp_avg_dtype exp_avg_sq_dtype use_decoupled_grad store_param_remainders set_grad_none""",
    "pytorch.optimizers.FusedAdam.step": "self closure grad_scaler",
    "pytorch.fp8_autocast": "enabled calibrating fp8_recipe fp8_group _graph",
    "pytorch.attention.rope.apply_rotary_pos_emb":
        "t freqs tensor_format start_positions interleaved fused cu_seqlens cp_size cp_rank",
}.items()}

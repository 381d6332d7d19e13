"""Changes of the tiny model's config that nothing can be computed with: (change, key that is named, what is possible).

from nextn.odd_configs import ODD, OF_A_TARGET
"""

WHOLE = "it is a whole number from "
TYPES = {"rope_type": "default"}

ODD = [
    ({"num_experts_per_tok": 99}, "num_experts_per_tok", "the router could not fill its choice"),
    ({"num_experts_per_tok": 0}, "`num_experts_per_tok` is 0", WHOLE + "1"),
    ({"num_experts_per_tok": 4.0}, "`num_experts_per_tok` is 4.0", WHOLE + "1"),
    ({"topk_group": 5}, "`topk_group` is 5", "it is at most `n_group`, which is 1"),
    ({"topk_group": 0}, "`topk_group` is 0", WHOLE + "1"),
    ({"n_group": 0}, "`n_group` is 0", WHOLE + "1"),
    ({"n_group": 3}, "n_group", "engines cut the experts into groups of one size"),
    ({"n_group": 16}, "topk_group", "a token may use 1 groups of 1"),
    ({"index_topk": -5}, "`index_topk` is -5", WHOLE + "1"),
    ({"index_topk": 0}, "`index_topk` is 0", WHOLE + "1"),
    ({"index_head_dim": 16}, "`qk_rope_head_dim` is 32", "`index_head_dim` is 16"),
    ({"qk_rope_head_dim": 31}, "`qk_rope_head_dim` is 31", "rotary positions turn pairs"),
    ({"num_attention_heads": 0}, "`num_attention_heads` is 0", WHOLE + "1"),
    ({"num_attention_heads": True}, "`num_attention_heads` is True", WHOLE + "1"),
    ({"hidden_size": -1}, "`hidden_size` is -1", WHOLE + "1 to 262,144"),
    ({"hidden_size": 10**12}, "`hidden_size` is 1000000000000", WHOLE + "1 to 262,144"),
    ({"hidden_size": "many"}, "`hidden_size` is 'many'", WHOLE + "1"),
    ({"hidden_act": "evil"}, "`hidden_act` is 'evil'", "silu"),
    ({"hidden_act": ["silu"]}, "`hidden_act` is ['silu']", "silu"),
    ({"norm_topk_prob": 1}, "`norm_topk_prob` is 1", "it is true or false"),
    ({"routed_scaling_factor": 0}, "`routed_scaling_factor` is 0", "it is a number from"),
    ({"rms_norm_eps": -1}, "`rms_norm_eps` is -1", "it is a number from"),
    ({"rms_norm_eps": float("nan")}, "`rms_norm_eps` is nan", "it is a number from"),
    ({"max_position_embeddings": -1}, "`max_position_embeddings` is -1", WHOLE + "1"),
    ({"max_position_embeddings": None}, "no `max_position_embeddings`", "a default would be another model's"),
    ({"rope_parameters": {}}, "no `rope_theta`", "a default would be another model's"),
    ({"rope_parameters": TYPES}, "no `rope_theta`", "a default would be another model's"),
    ({"rope_parameters": TYPES | {"rope_theta": 0}}, "`rope_theta` is 0", "it is a number from 1"),
    ({"rope_parameters": TYPES | {"rope_theta": -5}}, "`rope_theta` is -5", "it is a number from 1"),
    ({"rope_parameters": TYPES, "rope_theta": "big"}, "`rope_theta` is 'big'", "it is a number from 1"),
    ({"rope_parameters": [1]}, "`rope_parameters` is [1]", "it holds `rope_theta`"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000}}, "transformers cannot make", "factor"),
]
OF_A_TARGET = [
    ({"vocab_size": 0}, "`vocab_size` is 0", WHOLE + "1"),
    ({"intermediate_size": 2.5}, "`intermediate_size` is 2.5", WHOLE + "1"),
    ({"num_hidden_layers": 10**9}, "`num_hidden_layers` is 1000000000", WHOLE + "1 to 1,000"),
    ({"first_k_dense_replace": 99}, "`first_k_dense_replace` is 99", "`mlp_layer_types` says otherwise: 1 of 3 layers"),
    ({"first_k_dense_replace": None, "mlp_layer_types": None}, "no `first_k_dense_replace`", "a default would be"),
    ({"indexer_types": ["full", "full", ["shared"]]}, "transformers cannot make", "indexer_types"),
    ({"indexer_types": None, "index_topk_pattern": "FXF"}, "transformers cannot make", "X"),
]

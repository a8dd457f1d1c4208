"""Tiny random models of many families of Transformers."""

import torch
import transformers as t

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
SHORT = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
TOWER = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 32, "patch_size": 14}

DECODERS = {
    "gpt2": lambda: t.GPT2Config(**SHORT, n_embd=24, n_layer=3, n_head=4, n_positions=128),
    "gpt_neo": lambda: t.GPTNeoConfig(
        **SHORT, hidden_size=24, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=5
    ),
    "gptj": lambda: t.GPTJConfig(**SHORT, n_embd=32, n_layer=3, n_head=4, n_positions=128, rotary_dim=4),
    "gpt_neox": lambda: t.GPTNeoXConfig(**SIZES),
    "opt": lambda: t.OPTConfig(
        **SHORT, hidden_size=24, word_embed_proj_dim=24, num_hidden_layers=3, num_attention_heads=4, ffn_dim=32
    ),
    "bloom": lambda: t.BloomConfig(**SHORT, hidden_size=24, n_layer=3, n_head=4),
    "falcon": lambda: t.FalconConfig(**SHORT, hidden_size=24, num_hidden_layers=3, num_attention_heads=4),
    "mpt": lambda: t.MptConfig(vocab_size=50, d_model=24, n_layers=3, n_heads=4, max_seq_len=128),
    "llama": lambda: t.LlamaConfig(**GROUPED),
    "mistral": lambda: t.MistralConfig(**GROUPED, sliding_window=5),
    "mixtral": lambda: t.MixtralConfig(**GROUPED, **EXPERTS),
    "qwen3": lambda: t.Qwen3Config(**GROUPED),
    "gemma2": lambda: t.Gemma2Config(**GROUPED, sliding_window=5, query_pre_attn_scalar=8),
    "gemma3": lambda: t.Gemma3Config(
        text_config=GROUPED | {"sliding_window": 5}, vision_config=TOWER | {"num_hidden_layers": 3, "image_size": 28}
    ),
    "gpt_oss": lambda: t.GptOssConfig(**GROUPED, **EXPERTS, sliding_window=5),
    "granite_swa": lambda: t.GraniteSWAConfig(**GROUPED, sliding_window=5),
}
HYBRIDS = {  # with the layers that have no attention
    "qwen3_next": (
        lambda: t.Qwen3NextConfig(
            **GROUPED | {"num_hidden_layers": 4},
            **LINEAR,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        ),
        [0, 1, 2],
    ),
    "qwen3_5_text": (lambda: t.Qwen3_5TextConfig(**GROUPED | {"num_hidden_layers": 4}, **LINEAR), [0, 1, 2]),
    "lfm2": (
        lambda: t.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention", "conv"]),
        [0, 2],
    ),
}
ENCODERS = {
    "bert": lambda: t.BertConfig(**SIZES),
    "roberta": lambda: t.RobertaConfig(**SIZES | {"pad_token_id": 1, "bos_token_id": 0}),
    "electra": lambda: t.ElectraConfig(**SIZES, embedding_size=24),
    "distilbert": lambda: t.DistilBertConfig(vocab_size=50, dim=24, n_layers=3, n_heads=4, hidden_dim=32),
    "mpnet": lambda: t.MPNetConfig(**SIZES | {"pad_token_id": 1, "bos_token_id": 0}),
    "deberta-v2": lambda: t.DebertaV2Config(
        **SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8
    ),
    "modernbert": lambda: t.ModernBertConfig(**SIZES, local_attention=8, cls_token_id=1, sep_token_id=2),
}
REFUSED = {
    "t5": lambda: t.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2),
    "clip": lambda: t.CLIPConfig(
        text_config=SIZES, vision_config=TOWER | {"num_hidden_layers": 3, "image_size": 28}, projection_dim=8
    ),
    "vit": lambda: t.ViTConfig(**TOWER | {"num_hidden_layers": 3, "image_size": 28}),
    "gemma3n_text": lambda: t.Gemma3nTextConfig(
        **GROUPED,
        layer_types=["full_attention"] * 3,
        num_kv_shared_layers=0,
        vocab_size_per_layer_input=50,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 3,
        altup_num_inputs=2,
    ),
    "mamba": lambda: t.MambaConfig(vocab_size=50, hidden_size=24, num_hidden_layers=2, state_size=4),
    "xlm": lambda: t.XLMConfig(vocab_size=50, emb_dim=24, n_layers=2, n_heads=4),
}


def build(config, head: bool = False):
    """A random model of the config, away from uniform attention; with `head`, one that predicts the next token."""
    torch.manual_seed(0)
    kind = t.AutoModelForCausalLM if head else t.AutoModel
    model = kind.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model

"""Small models of many shapes for the circuit tests: native ones, and random Hugging Face ones."""

import functools

import torch
import transformers
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

from lens_linear.models.open.load import load

HF_KINDS = ("gpt2", "neox", "gemma2", "opt", "qwen2", "llama", "phi", "gpt_neo")


def native(*, seed=0, noise=0.3, **changes):
    """A native attention-only bridge of any shape, every weight and bias moved off zero."""
    values = {
        "n_layers": 2,
        "d_model": 20,
        "n_heads": 3,
        "d_head": 10,  # n_heads * d_head != d_model
        "d_vocab": 30,
        "n_ctx": 24,
        "attn_only": True,
        "normalization_type": None,
        "seed": seed,
    }
    model = TransformerBridge.boot_native(TransformerBridgeConfig(**{**values, **changes}))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def ids(model, batch=2, length=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.cfg.d_vocab, (batch, length), generator=generator)


@functools.cache
def hugging_face(kind, folder):
    """A random model of a real architecture, saved to a folder and opened as a user would."""
    common = {"vocab_size": 61}
    llama = dict(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=32,
        intermediate_size=48,
        max_position_embeddings=40,
        **common,
    )
    neox = dict(llama, num_attention_heads=2)
    neox.pop("num_key_value_heads")
    configs = {
        "gpt2": lambda: transformers.GPT2Config(
            n_layer=2, n_head=3, n_embd=24, n_positions=40, **common
        ),
        "neox": lambda: transformers.GPTNeoXConfig(rotary_pct=0.5, **neox),
        "gemma2": lambda: transformers.Gemma2Config(
            head_dim=10, sliding_window=64, query_pre_attn_scalar=10, attention_bias=True, **llama
        ),
        "gemma2 with windows": lambda: transformers.Gemma2Config(
            head_dim=10,
            sliding_window=5,
            query_pre_attn_scalar=2,
            attn_logit_softcapping=0.5,
            **llama,
        ),
        "gemma3": lambda: transformers.Gemma3TextConfig(
            head_dim=10, sliding_window=64, query_pre_attn_scalar=10, **llama
        ),
        "olmo2": lambda: transformers.Olmo2Config(**llama),
        "opt": lambda: transformers.OPTConfig(
            num_hidden_layers=2,
            num_attention_heads=4,
            hidden_size=32,
            ffn_dim=48,
            max_position_embeddings=40,
            word_embed_proj_dim=32,
            **common,
        ),
        "qwen2": lambda: transformers.Qwen2Config(**llama),
        "qwen3": lambda: transformers.Qwen3Config(head_dim=8, **llama),
        "llama": lambda: transformers.LlamaConfig(**{**llama, "num_key_value_heads": 1}),
        "phi": lambda: transformers.PhiConfig(**neox),
        "gpt_neo": lambda: transformers.GPTNeoConfig(
            num_layers=2,
            num_heads=4,
            hidden_size=32,
            max_position_embeddings=40,
            attention_types=[[["global", "local"], 1]],
            window_size=16,
            **common,
        ),
        "bloom": lambda: transformers.BloomConfig(n_layer=2, n_head=2, hidden_size=32, **common),
        "mistral": lambda: transformers.MistralConfig(sliding_window=4, **llama),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            configs[kind](), attn_implementation="eager"
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    path = f"{folder}/{kind}"
    model.save_pretrained(path)
    return load(path)

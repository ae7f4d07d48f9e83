"""Tiny random models of other people's architectures, from local configurations."""

import transformers
from huggingface_hub import constants

CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=96, n_positions=64, n_embd=32, n_layer=3, n_head=4
    ),
    "neox": lambda: transformers.GPTNeoXConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        use_parallel_residual=True,
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=64,
        sliding_window=64,
    ),
    "llama": lambda: transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "qwen2": lambda: transformers.Qwen2Config(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    ),
}

# These write something else into the stream than their sublayers return.
UNUSUAL = {
    "bloom": lambda: transformers.BloomConfig(vocab_size=96, hidden_size=32, n_layer=3, n_head=4),
    "mpt": lambda: transformers.MptConfig(
        vocab_size=96, d_model=32, n_heads=4, n_layers=3, max_seq_len=64
    ),
    "granite": lambda: transformers.GraniteConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        residual_multiplier=0.3,
    ),
}


def save_random(name, folder, *, scale=0.05, seed=0):
    """Write a random model of an architecture as a Hugging Face folder (no tokenizer)."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config({**CONFIGS, **UNUSUAL}[name]())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * scale)
        model.save_pretrained(folder)
    return folder


def as_hub_name(cache, folder, name, monkeypatch):
    """Lay a folder into a cache as the snapshot of a Hub repository; the repository's name."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = cache / f"models--someone--{name}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots").mkdir()
    (home / "snapshots" / commit).symlink_to(folder, target_is_directory=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return f"someone/{name}"

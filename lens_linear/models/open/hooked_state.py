"""Weights saved from HookedTransformer (TransformerLens before 4): one file and its configuration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

from lens_linear.checks import require_choice, require_float, shown
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, UnsupportedModelError
from lens_linear.files import read_json
from lens_linear.models.native import quiet_transformer_lens
from lens_linear.token_labels import text_label

SUFFIXES = (".pt", ".pth", ".safetensors")
_NEEDED = ("n_layers", "d_model", "n_ctx", "d_head", "d_vocab")
# Words of the old configuration that the native model of TransformerLens 4 obeys ...
_OBEYED = (
    *_NEEDED,
    "n_heads",
    "d_mlp",
    "d_vocab_out",
    "act_fn",
    "attn_only",
    "normalization_type",
    "positional_embedding_type",
    "attention_dir",
    "eps",
    "final_rms",
    "gated_mlp",
    "n_key_value_heads",
    "output_logits_soft_cap",
    "attn_scores_soft_cap",
)
# ... and words it ignores, with the only value for which that changes nothing.
_IGNORED = {
    "use_attn_scale": True,
    "use_local_attn": False,
    "parallel_attn_mlp": False,
    "use_qk_norm": False,
    "scale_attn_by_inverse_layer_idx": False,
    "use_NTK_by_parts_rope": False,
    "use_hook_mlp_in": False,
    "use_normalization_before_and_after": False,
    "post_embedding_ln": False,
    "num_experts": None,
    "positional_embedding_type": "standard",
}


def load_hooked_state(
    path: Path, config: dict[str, Any] | str | Path, *, dtype: torch.dtype
) -> TransformerBridge:
    """Open a state dict of ``HookedTransformer`` with its configuration.

    Pickled files are read with ``weights_only=True``: tensors and nothing else.

    Args:
        path: ``.pt``, ``.pth`` or ``.safetensors``.
        config: ``HookedTransformerConfig.to_dict()`` of the model, or a JSON file of it.
        dtype: of the weights.

    Raises:
        InvalidArgumentError: the configuration lacks what a model needs.
        CorruptedFileError: the file cannot be read, or its weights do not fit the configuration.
        UnsupportedModelError: the configuration asks for what TransformerLens 4 no longer does natively.
    """
    cfg = _bridge_config(config)
    state = _read(path)
    try:
        _require_sizes(state, cfg)  # before anything of that size is built
        with torch.random.fork_rng(devices=[]), quiet_transformer_lens():
            converted = convert_tl_checkpoint(state, cfg)
            model: TransformerBridge = TransformerBridge.boot_native(  # type: ignore[attr-defined]
                cfg, model_name=path.stem, dtype=torch.float32
            )
            known = model.state_dict()
            # Models without an unembedding bias, or folded ones, leave out what is zero.
            for name in known.keys() - converted.keys():
                if name == "unembed.bias":
                    converted[name] = torch.zeros_like(known[name])
            model.load_state_dict(converted, strict=True)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CorruptedFileError(
            f"the weights in {str(path)!r} do not fit their configuration "
            f"({str(error).splitlines()[0][:200]}); pass the config that the model was saved with"
        ) from error
    if dtype != torch.float32:
        model = model.to(dtype)
        model.cfg.dtype = dtype
    model.cfg.model_name = text_label(path.stem)
    return model.eval()


def _bridge_config(config: dict[str, Any] | str | Path) -> TransformerBridgeConfig:
    if isinstance(config, (str, Path)):
        config = read_json(Path(config).expanduser(), advice="pass the JSON file of its config")
    if not isinstance(config, dict):
        raise InvalidArgumentError(
            f"config must be a dict or a JSON file, got {type(config).__name__}; pass "
            "HookedTransformerConfig.to_dict() of the model"
        )
    missing = [name for name in _NEEDED if config.get(name) is None]
    if missing:
        raise InvalidArgumentError(
            f"config lacks {', '.join(missing)}; pass HookedTransformerConfig.to_dict() of the model"
        )
    for name, harmless in _IGNORED.items():
        if config.get(name, harmless) not in (harmless, None):
            raise UnsupportedModelError(
                f"config says {name}={config[name]!r}, which the converted model would not obey, so every "
                f"number would be of another model; pass a model with {name}={harmless!r}"
            )
    width, scale = config["d_head"], config.get("attn_scale")
    if scale is not None and not _is_root(scale, width):
        raise UnsupportedModelError(
            f"config says attn_scale={shown(scale)}, but the converted model divides scores by the root of "
            f"d_head={width}, so every number would be of another model; multiply W_Q and b_Q by the root of "
            "d_head over attn_scale, and leave attn_scale out"
        )
    # -1 stands for "as the other words say" in HookedTransformerConfig.
    values = {name: config[name] for name in _OBEYED if config.get(name) not in (None, -1)}
    # Written down as null it means none; left out, the default of the old class.
    values.setdefault("normalization_type", config.get("normalization_type", "LN"))
    if "eps" in values:
        values["eps"] = require_float("eps in config", values["eps"], minimum=0.0)
    direction = values.get("attention_dir", "causal")
    require_choice("attention_dir in config", direction, ("causal", "bidirectional"))
    try:
        values.setdefault("n_heads", values["d_model"] // values["d_head"])
        values.setdefault("d_mlp", 4 * values["d_model"])
        return TransformerBridgeConfig(
            **{**values, "positional_embedding_type": "standard"},
            architecture="TransformerLensNative",
            init_weights=False,
        )
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InvalidArgumentError(
            f"config is not one of a HookedTransformer ({error}); pass its cfg.to_dict()"
        ) from error


def _is_root(scale: Any, width: Any) -> bool:
    """Whether ``scale`` is the root of ``width``, or -1, which stands for it."""
    try:
        return float(scale) == -1 or math.isclose(float(scale) ** 2, float(width), rel_tol=1e-4)
    except (TypeError, ValueError, OverflowError):
        return False


def _require_sizes(state: dict[str, Tensor], cfg: TransformerBridgeConfig) -> None:
    """Hold every size of the configuration against the weights; a ValueError says which differs."""
    layers = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    sizes = {"n_layers": len(layers), "n_ctx": len(state["pos_embed.W_pos"])}
    sizes["d_vocab"], sizes["d_model"] = state["embed.W_E"].shape
    sizes["d_vocab_out"] = state["unembed.W_U"].shape[1]
    if layers:
        sizes["n_heads"], _, sizes["d_head"] = state["blocks.0.attn.W_Q"].shape
        if not cfg.attn_only:
            sizes["d_mlp"] = state["blocks.0.mlp.W_in"].shape[1]
    for name, stored in sizes.items():
        if getattr(cfg, name) not in (stored, -1):
            raise ValueError(f"{name} is {shown(getattr(cfg, name))}, the weights have {stored}")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        if isinstance(state, dict) and isinstance(state.get("model"), dict):
            state = state["model"]
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("it holds other things than tensors")
    except Exception as error:  # unpicklers raise whatever the bytes lead to
        raise CorruptedFileError(
            f"{str(path)!r} is not a state dict that can be read safely "
            f"({type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}); save it "
            "anew with torch.save(model.state_dict(), path)"
        ) from error
    return {name: value.float() for name, value in state.items() if value.is_floating_point()}

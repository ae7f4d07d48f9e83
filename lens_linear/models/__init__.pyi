from .capture import SITES as SITES
from .capture import Run as Run
from .capture import Site as Site
from .capture import TokenRows as TokenRows
from .capture import available_sites as available_sites
from .capture import batched as batched
from .capture import evaluating as evaluating
from .capture import forward_logits as forward_logits
from .capture import model_device as model_device
from .capture import residual_stream as residual_stream
from .capture import run as run
from .capture import visit_sites as visit_sites
from .checked import CheckedModel as CheckedModel
from .checked import ModelLike as ModelLike
from .checked import NormKind as NormKind
from .checked import checked as checked
from .describe.parameter_counts import n_parameters as n_parameters
from .describe.parameter_counts import site_parameters as site_parameters
from .describe.rotary import Rotary as Rotary
from .describe.rotary import read_rotary as read_rotary
from .describe.weights import AttentionWeights as AttentionWeights
from .describe.weights import ModelWeights as ModelWeights
from .describe.weights import norm_scale as norm_scale
from .describe.weights import read_attention as read_attention
from .describe.weights import read_weights as read_weights
from .frozen.attention_scores import attention_scores as attention_scores
from .frozen.frozen_attention import FrozenRun as FrozenRun
from .frozen.frozen_attention import freeze_attention as freeze_attention
from .frozen.frozen_attention import in_double as in_double
from .frozen.frozen_attention import norm_gap as norm_gap
from .frozen.frozen_context import FrozenContext as FrozenContext
from .frozen.frozen_context import freeze_context as freeze_context
from .hooks import edited as edited
from .hooks import has_spot as has_spot
from .native import ModelSpec as ModelSpec
from .native import bridge_from_module as bridge_from_module
from .native import native_module as native_module
from .open.bundled import available_models as available_models
from .open.bundled import training_table as training_table
from .open.cards import TOKENIZER as TOKENIZER
from .open.cards import write_card as write_card
from .open.checksum import weights_sha256 as weights_sha256
from .open.folder import write_weights as write_weights
from .open.load import load as load
from .open.obtain import get_model as get_model
from .open.save import save_model as save_model
from .open.toy import toy_model as toy_model
from .spots import Edit as Edit
from .spots import Spot as Spot
from .tokenizer import bos_token as bos_token
from .tokenizer import encode_stream as encode_stream
from .tokenizer import save_tokenizer as save_tokenizer
from .tokenizer import token_strings as token_strings
from .tokenizer import tokenize as tokenize
from .tokenizer import tokenize_prompts as tokenize_prompts
from .tokenizer import train_tokenizer as train_tokenizer
from .tokenizer import vocabulary as vocabulary

__all__ = [
    "SITES",
    "TOKENIZER",
    "AttentionWeights",
    "CheckedModel",
    "Edit",
    "FrozenContext",
    "FrozenRun",
    "ModelLike",
    "ModelSpec",
    "ModelWeights",
    "NormKind",
    "Rotary",
    "Run",
    "Site",
    "Spot",
    "TokenRows",
    "attention_scores",
    "available_models",
    "available_sites",
    "batched",
    "bos_token",
    "bridge_from_module",
    "checked",
    "edited",
    "encode_stream",
    "evaluating",
    "forward_logits",
    "freeze_attention",
    "freeze_context",
    "get_model",
    "has_spot",
    "in_double",
    "load",
    "model_device",
    "n_parameters",
    "native_module",
    "norm_gap",
    "norm_scale",
    "read_attention",
    "read_rotary",
    "read_weights",
    "residual_stream",
    "run",
    "save_model",
    "save_tokenizer",
    "site_parameters",
    "token_strings",
    "tokenize",
    "tokenize_prompts",
    "toy_model",
    "train_tokenizer",
    "training_table",
    "visit_sites",
    "vocabulary",
    "weights_sha256",
    "write_card",
    "write_weights",
]

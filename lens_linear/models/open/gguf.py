"""A GGUF file (llama.cpp's format) as a Hugging Face model: dequantised, its tokenizer checked.

transformers rebuilds weights, configuration and tokenizer from the file. What it does not know for some
byte-level vocabularies is how text is cut before the merges run; the file names that rule
(``tokenizer.ggml.pre``), and a tokenizer whose rule is not known here is left out rather than trusted.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers

from lens_linear.errors import (
    CorruptedFileError,
    LensLinearWarning,
    OfflineError,
    UnsupportedModelError,
)
from lens_linear.models.native import no_bars_of_libraries, quiet_transformer_lens

_GGUF = b"GGUF"


def _digits_apart() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


# llama.cpp's names of rules (src/llama-vocab.cpp) that transformers reads as plain GPT-2, or not at all.
_RULES = {
    "gpt-2": _gpt2,
    "gpt2": _gpt2,
    "phi-2": _gpt2,
    "jina-es": _gpt2,
    "jina-de": _gpt2,
    "mpt": _gpt2,
    "olmo": _gpt2,
    "gigachat": _gpt2,
    "smollm": _digits_apart,
    "starcoder": _digits_apart,
    "refact": _digits_apart,
    "command-r": _digits_apart,
    "codeshell": _digits_apart,
    "exaone": _digits_apart,
    "minerva-7b": _digits_apart,
}


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file gives: the model, its tokenizer (None when it cannot be trusted), and its kind."""

    model: Any
    tokenizer: Any | None
    quantization: str


def is_gguf(path: Path) -> bool:
    """Say whether a file begins as GGUF files do."""
    try:
        with path.open("rb") as file:
            return file.read(4) == _GGUF
    except OSError:
        return False


def read_gguf(path: Path, *, dtype: torch.dtype) -> GgufModel:
    """Read a GGUF file with transformers; every weight is dequantised to ``dtype``.

    Raises:
        OfflineError: the package ``gguf`` is not installed.
        CorruptedFileError: the file is cut short or no GGUF file.
        UnsupportedModelError: an architecture that transformers does not read from GGUF.
    """
    fields = _fields(path)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(path.parent),
        "gguf_file": path.name,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    try:
        with quiet_transformer_lens("transformers"), no_bars_of_libraries():
            model = AutoModelForCausalLM.from_pretrained(
                **where, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
            )
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # many libraries, many classes
        first = str(error).splitlines()[0][:200] if str(error) else ""
        raise UnsupportedModelError(
            f"transformers cannot read {str(path)!r} ({type(error).__name__}: {first}); convert it to a "
            "Hugging Face folder with llama.cpp's tools, or pass another file"
        ) from error
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")  # the weights are plain numbers now
    return GgufModel(model.eval(), _checked(tokenizer, fields, path), _quantization(fields))


def _fields(path: Path) -> dict[str, Any]:
    """Read the scalar words of the file's head."""
    try:
        import gguf
    except ImportError as error:
        raise OfflineError(
            f"reading {path.name!r} needs the package gguf; install it with: "
            "pip install 'lens-linear[gguf]'"
        ) from error
    try:
        reader = gguf.GGUFReader(str(path))
        words = {
            key: field.contents()
            for key, field in reader.fields.items()
            if field.types and field.types[0] is not gguf.GGUFValueType.ARRAY
        }
        kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    except Exception as error:  # the reader raises whatever the bytes lead to
        raise CorruptedFileError(
            f"{str(path)!r} cannot be read as GGUF ({type(error).__name__}: {str(error)[:120]}); it is "
            "cut short or something else: get the file again"
        ) from error
    words["_kinds"] = sorted(kinds)
    return words


def _quantization(fields: dict[str, Any]) -> str:
    import gguf

    try:
        name = gguf.LlamaFileType(int(fields.get("general.file_type", -1))).name
    except ValueError:
        return "/".join(fields["_kinds"])
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def _checked(tokenizer: Any, fields: dict[str, Any], path: Path) -> Any | None:
    """Give a byte-level tokenizer the rule that the file names; None where that rule is not known."""
    if fields.get("tokenizer.ggml.model") != "gpt2":
        return tokenizer  # SentencePiece and unigram vocabularies cut text by themselves
    rule = fields.get("tokenizer.ggml.pre")
    if rule in _RULES:
        tokenizer.backend_tokenizer.pre_tokenizer = _RULES[rule]()
        return tokenizer
    if rule in _known_to_transformers():
        return tokenizer
    warnings.warn(
        f"{path.name!r} cuts text by the rule {rule!r}, which is not known here, so its tokenizer is left "
        "out; pass token tensors, or load the model's own Hugging Face folder",
        LensLinearWarning,
        stacklevel=2,
    )
    return None


def _known_to_transformers() -> set[str]:
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping
    except ImportError:  # older releases know none
        return set()
    return set(mapping.GGUF_PRE_TOKENIZER_SPLITS)

"""A name on the Hugging Face Hub as a local folder, so that it meets every check that folders meet."""

from __future__ import annotations

import difflib
from pathlib import Path

from transformer_lens.model_bridge.sources.transformers.helpers import (
    _resolve_checkpoint_to_revision,
)
from transformer_lens.supported_models import DEFAULT_MODEL_ALIASES

from lens_linear.checks import shown
from lens_linear.errors import (
    InvalidArgumentError,
    LensLinearError,
    OfflineError,
    UnknownModelError,
    UnsupportedModelError,
)
from lens_linear.models.open.bundled import bundled_names
from lens_linear.models.open.obtain import OBTAINABLE

_WANTED = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
_UNWANTED = ["*/*", "consolidated*"]
_REFUSED = ("Invalid user token", "Invalid username or password")


def hub_folder(name: str, *, revision: str | None = None) -> Path:
    """Return the folder of the local cache that holds a Hub model, fetched first where there is network.

    Raises:
        UnknownModelError: the Hub has no such model or revision, or refuses it to this user.
        OfflineError: it is not in the cache and the Hub cannot be reached.
        UnsupportedModelError: it has no weights as safetensors.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
            )
        )
    except Exception as error:
        raise hub_error(name, error, revision=revision) from error
    if not any(folder.glob("*.safetensors")) and not (folder / "adapter_config.json").is_file():
        raise UnsupportedModelError(
            f"{name!r} has no weights as *.safetensors on the Hub, and pickled ones are never opened; try "
            "revision='refs/pr/1' where the Hub's converter has proposed them, or save it with "
            "save_pretrained where you trust it and pass that folder"
        )
    return folder


def checkpoint_revision(name: str, checkpoint: int) -> str:
    """Return the revision that holds a training step of a Hub model (Pythia, stanford-crfm).

    Raises:
        InvalidArgumentError: the model has no such step, or its steps are not known.
    """
    try:
        return str(_resolve_checkpoint_to_revision(name, None, checkpoint))
    except ValueError as error:
        raise InvalidArgumentError(
            f"checkpoint must be a published training step of {name!r}, got {checkpoint} ({error}); pass "
            "revision= where its branches are named otherwise"
        ) from error


def nearest_names(name: str) -> str:
    """Return known names that look like ``name``, whatever its case, as a list in words."""
    names = (*DEFAULT_MODEL_ALIASES, *bundled_names(), *OBTAINABLE)
    known = {one.lower(): one for one in names if one != name}
    near = difflib.get_close_matches(name.strip().lower(), known, n=4, cutoff=0.5)
    return ", ".join(known[one] for one in near) or "none"


def hub_error(name: str, error: Exception, *, revision: str | None = None) -> LensLinearError:
    """Say in one sentence what came between a name and its model."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 8:
        chain.append(inner)
    kinds = {cls.__name__ for one in chain for cls in type(one).__mro__}
    statuses = [getattr(getattr(one, "response", None), "status_code", None) for one in chain]
    status = next((code for code in statuses if isinstance(code, int)), None)
    text = " ".join(str(one) for one in chain)
    # The Hub's answer to a name that it does not have speaks of gated repositories too.
    unknown = "RepositoryNotFoundError" in kinds and "GatedRepoError" not in kinds
    if "GatedRepoError" in kinds or ("gated repo" in text.lower() and not unknown):
        if "rejected" in text.lower() or "awaiting" in text.lower():
            return UnknownModelError(
                f"the Hub's {name!r} is gated, and its authors have not given this account access: the "
                "request stands on its page as rejected or waiting; use another model, the token of an "
                "account that has access, or a local folder"
            )
        return UnknownModelError(
            f"the Hub's {name!r} is gated: its terms must be accepted on its page, and a token of that "
            "account given with `hf auth login` or HF_TOKEN; or pass a local folder"
        )
    if any(words in text for words in _REFUSED) or (status == 401 and not unknown):
        return UnknownModelError(
            f"the Hub refused the token for {name!r}, or has no such model; log in anew with `hf auth "
            f"login`, or unset HF_TOKEN for open models; nearest names known: {nearest_names(name)}"
        )
    if "RevisionNotFoundError" in kinds:
        return UnknownModelError(
            f"the Hub's {name!r} has no revision {shown(revision)}; see its branches and tags on its page"
        )
    if unknown or "HFValidationError" in kinds or "not a valid model identifier" in text:
        return UnknownModelError(
            f"the Hub has no open model {name!r}; nearest names known: {nearest_names(name)}; "
            f"bundled: {', '.join(bundled_names())}; a private one needs `hf auth login` or HF_TOKEN"
        )
    if status == 404:
        return UnsupportedModelError(
            f"the Hub has {name!r}, but it lacks a file that a model needs, such as config.json; it may hold "
            "a data set, an adapter or weights alone: see its page, and pass the name of a whole model"
        )
    offline = {"OSError", "ConnectionError", "ConnectError", "TimeoutException"}
    if kinds & offline or "offline" in text.lower() or "connect" in text.lower():
        met = "could not be reached" if status is None else f"answered with HTTP status {status}"
        return OfflineError(
            f"{name!r}{'' if revision is None else f' at revision {revision!r}'} is not in the local cache "
            f"and the Hub {met}; download the model's folder where there is network and pass "
            f"the folder, or use a bundled model: {', '.join(bundled_names())}"
        )
    first = str(error).splitlines()[0][:300] if str(error) else ""
    return UnsupportedModelError(
        f"TransformerLens could not open {name!r} ({type(error).__name__}: {first})"
    )

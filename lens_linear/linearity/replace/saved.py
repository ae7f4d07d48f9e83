"""A linearised model on disk: ``maps.safetensors`` and ``linearized.json``, readable without this package.

The folder holds the affine maps (weight and bias as float32, or two thin factors when the rank is low),
where each goes, parameter counts, checksums, and which model they belong to with a checksum of its
weights. The model itself is named, not copied: bundled, from the Hub, or given by the caller.

>>> import tempfile, torch
>>> from lens_linear.linearity.replace.replacement import fit_linearization
>>> from lens_linear.models.open.toy import toy_model
>>> model = toy_model(n_layers=2, d_model=16)
>>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
>>> folder = save_linearized(tempfile.mkdtemp(), model, fit_linearization(model, tokens, [1]))
>>> load_linearized(folder, model=model)(tokens[:2]).shape
torch.Size([2, 16, 64])
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import require_instance, require_path
from lens_linear.errors import (
    CorruptedFileError,
    InvalidArgumentError,
    LensLinearError,
    UnknownModelError,
)
from lens_linear.files import read_json, require_folder, write_tensors, write_text
from lens_linear.linearity.replace.affine_map import AffineMap, Linearization, require_disjoint
from lens_linear.models.capture import run
from lens_linear.models.checked import ModelLike, checked
from lens_linear.models.describe.weights_mark import WeightsMark
from lens_linear.models.open.checksum import weights_sha256
from lens_linear.models.open.load import load, origin
from lens_linear.token_rows import TokenRows

MAPS = "maps.safetensors"
CARD = "linearized.json"
FORMAT = "lens_linear.linearized 1"


@dataclass(frozen=True, eq=False)
class LinearizedModel:
    """A model with some layers run as affine maps.

    Attributes:
        model: the bridge it is built on; unchanged.
        linearization: the maps.
    """

    model: TransformerBridge
    linearization: Linearization
    mark: WeightsMark = field(repr=False)

    @property
    def n_parameters(self) -> int:
        """Parameters of the model with maps in place of what they replace."""
        return self.linearization.n_parameters

    def __call__(
        self, tokens: Int[Tensor, "batch position"] | TokenRows
    ) -> Float[Tensor, "batch position vocab"]:
        """Logits of the linearised model."""
        self.mark.warn(checked(self.model), "the linearised model", "fit its maps anew")
        out = run(self.model, tokens, edits=self.linearization.edits()).logits
        return out

    @contextmanager
    def active(self) -> Iterator[TransformerBridge]:
        """Make ``model`` itself behave as the linearised one while the block lasts."""
        self.mark.warn(
            checked(self.model), "the linearised model", "fit its maps anew", stacklevel=5
        )
        with self.linearization.applied(self.model):
            yield self.model

    def __repr__(self) -> str:
        return f"LinearizedModel on {self.linearization!r}{self.mark.note(checked(self.model))}"


def save_linearized(folder: str | Path, model: ModelLike, linearization: Linearization) -> Path:
    """Write maps and card into ``folder`` (made if it is not there).

    Args:
        folder: where to; files of an older linearisation in it are replaced.
        model: the model the maps belong to.
        linearization: from ``fit_linearization`` or ``with linearize(...) as it``.

    Returns:
        The folder.

    Raises:
        InvalidArgumentError: no maps.
        WriteError: the disk is full or the folder may not be written to.

    Example:
        >>> import tempfile
        >>> from lens_linear.linearity.replace.replacement import fit_linearization
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16)
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> fitted = fit_linearization(model, tokens, [1])
        >>> folder = save_linearized(tempfile.mkdtemp(), model, fitted)
        >>> sorted(path.name for path in folder.iterdir())
        ['linearized.json', 'maps.safetensors']
    """
    model = checked(model)
    require_instance("linearization", linearization, Linearization, advice="see fit_linearization")
    if not linearization.maps:
        raise InvalidArgumentError("linearization holds no maps; fit at least one layer")
    folder = require_folder("folder", folder)
    tensors: dict[str, Tensor] = {}
    entries = []
    for number, m in enumerate(linearization.maps):
        stored, adds_input = _stored(m)
        tensors.update({f"{number}.{k}": v for k, v in stored.items()})
        entries.append(
            {
                "site": m.site,
                "first": m.first,
                "last": m.last,
                "rank": m.rank,
                "adds_input": adds_input,
                "r_squared": None if m.r_squared != m.r_squared else m.r_squared,
                "n": m.n,
            }
        )
    path = write_tensors(folder / MAPS, tensors, {"format": "pt"})
    card = {
        "format": FORMAT,
        "model": linearization.model_name,
        "origin": origin(model.bridge),
        "model_fingerprint": weights_sha256(model),
        "method": linearization.method,
        "maps": entries,
        "parameters": linearization.n_parameters,
        "parameters_before": linearization.parameters_before,
        "parameters_replaced": linearization.parameters_replaced,
        "parameters_of_maps": sum(m.n_parameters for m in linearization.maps),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "read_me": (
            "y = x @ weight + bias (row vectors), or x @ left @ right + bias for a map of low rank; where "
            "adds_input is true, x is added to that"
        ),
    }
    write_text(folder / CARD, json.dumps(card, indent=2) + "\n")
    return folder


def load_linearized(folder: str | Path, *, model: ModelLike | None = None) -> LinearizedModel:
    """Read a linearised model; its base is loaded by name unless it is given.

    Args:
        folder: written by :func:`save_linearized`.
        model: the base model, when its name alone does not find it.

    Returns:
        LinearizedModel: call it on tokens, or use ``with it.active() as model``.

    Raises:
        CorruptedFileError: files missing, damaged, or not matching each other.
        InvalidArgumentError: ``model`` has other weights than the maps were fitted on.
        UnknownModelError: the base model cannot be found by its name.

    Example:
        >>> import tempfile
        >>> from lens_linear.linearity.replace.replacement import fit_linearization
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16)
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> fitted = fit_linearization(model, tokens, [1])
        >>> again = load_linearized(save_linearized(tempfile.mkdtemp(), model, fitted), model=model)
        >>> with fitted.applied(model):
        ...     expected = model(tokens[:2])
        >>> torch.allclose(again(tokens[:2]), expected, atol=1e-5)
        True
    """
    folder = require_path("folder", folder)
    card, tensors = _read(folder)
    base = checked(_base(folder, card) if model is None else model)
    if weights_sha256(base) != card["model_fingerprint"]:
        raise InvalidArgumentError(
            f"model must have the weights the maps were fitted on ({card['model']!r}), but its "
            "fingerprint differs; pass that model"
        )
    maps = []
    for number, entry in enumerate(card["maps"]):
        adds_input = entry.get("adds_input", entry["site"] == "block")
        weight, bias = _restored(tensors, number, adds_input)
        r_squared = float("nan") if entry["r_squared"] is None else entry["r_squared"]
        maps.append(
            AffineMap(
                entry["site"],
                entry["first"],
                entry["last"],
                weight,
                bias,
                entry["rank"],
                r_squared,
                entry["n"],
            )
        )
    return LinearizedModel(
        base.bridge,
        Linearization(
            require_disjoint(maps),
            card["model"],
            card["method"],
            card["parameters_before"],
            card["parameters_replaced"],
        ),
        WeightsMark(base),
    )


def _base(folder: Path, card: dict[str, Any]) -> TransformerBridge:
    """The model the maps belong to: from where it was opened, then by its name, then beside the folder."""
    name = card["model"]
    ways: list[dict[str, Any]] = [{"name": name}, {"name": folder.parent / name}]
    if card.get("origin"):
        ways.insert(0, card["origin"])
    for way in ways:
        try:
            found = load(**way)
        except LensLinearError:
            continue
        if weights_sha256(found) == card["model_fingerprint"]:
            return found
    raise UnknownModelError(
        f"the model {name!r} that these maps belong to is not found again, neither where it was opened "
        f"({ways[0]['name']!r}) nor by its name; pass it: load_linearized(folder, model=...)"
    )


def _stored(m: AffineMap) -> tuple[dict[str, Tensor], bool]:
    """Tensors of a map, and whether its input is added to what its two thin factors give.

    A map of low rank is one of two things: a fit on an input of few directions, or (a block with
    ``rank=``) the identity plus a matrix of that rank. What is neither is stored whole.
    """
    d_in, d_out = m.weight.shape
    weight = m.weight.cpu()
    out = {"bias": m.bias.float().cpu().contiguous()}
    if m.rank * (d_in + d_out) < d_in * d_out:
        for adds_input in (False, True) if m.site == "block" else (False,):
            low = weight - torch.eye(d_in, dtype=weight.dtype) if adds_input else weight
            u, s, vt = torch.linalg.svd(low, full_matrices=False)
            if float(s[m.rank]) > 1e-9 * float(s[0]):
                continue
            root = s[: m.rank].sqrt()
            left, right = u[:, : m.rank] * root, root[:, None] * vt[: m.rank]
            factors = {"left": left.float().contiguous(), "right": right.float().contiguous()}
            return {**out, **factors}, adds_input
    return {**out, "weight": weight.float().contiguous()}, False


def _restored(tensors: dict[str, Tensor], number: int, adds_input: bool) -> tuple[Tensor, Tensor]:
    bias = tensors[f"{number}.bias"].double()
    if f"{number}.weight" in tensors:
        return tensors[f"{number}.weight"].double(), bias
    weight = tensors[f"{number}.left"].double() @ tensors[f"{number}.right"].double()
    return (weight + torch.eye(len(weight), dtype=weight.dtype) if adds_input else weight), bias


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        card = read_json(folder / CARD, advice="save it again")
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}")
        data = (folder / MAPS).read_bytes()
        if hashlib.sha256(data).hexdigest() != card["sha256"]:
            raise ValueError("the maps do not match the checksum on the card")
        tensors = load_file(folder / MAPS)
        missing = [n for n in range(len(card["maps"])) if f"{n}.bias" not in tensors]
        if missing:
            raise ValueError(f"maps {missing} are missing")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CorruptedFileError(
            f"{str(folder)!r} is not a linearised model that can be read ({error}); save it again"
        ) from error
    return card, tensors

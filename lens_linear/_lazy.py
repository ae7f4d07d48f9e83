"""Names of a package, loaded when they are used; a name that is not there is answered with where it is."""

import ast
import difflib
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lazy_loader

ROOT = Path(__file__).parent
# What 0.1.0 called things; these names go with the next minor version.
_RENAMED = {
    "lens_linear.models.ModelShape": "CheckedModel",
    "lens_linear.models.model_shape": "checked",
}


def attach(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package, from its stub ``__init__.pyi``."""
    get, names, everything = lazy_loader.attach_stub(package, file)

    def get_or_advise(name: str) -> Any:
        if name in everything or name.startswith("_"):
            return get(name)
        if now := _RENAMED.get(f"{package}.{name}"):
            words = f"{package}.{name} is {package}.{now} now; write that"
            warnings.warn(words, DeprecationWarning, stacklevel=2)
            return get(now)
        raise AttributeError(f"{package} has no {name!r}; {_advice(package, name)}")

    return get_or_advise, names, everything


# What the field, and TransformerLens, call things that have another name here; without underscores.
_HEAD = "the methods of lens_linear.head(model, 'L0H0')"
_RUN = "lens_linear.models.run(model, tokens, record=[...]), or the model's own run_with_cache"
_ABLATION = "lens_linear.circuits.ablation_scores(model, task, how=...), or lens_linear.circuits.ablate_heads"
_STATISTIC = "lens_linear.linearity_profile(model, tokens, statistics={name: function})"
_MEANT = {
    **dict.fromkeys(("qk", "ov", "eigenvalues", "qkcircuit", "ovcircuit", "svd"), _HEAD),
    **dict.fromkeys(("runwithcache", "cache", "hook", "hooks", "runwithhooks"), _RUN),
    **dict.fromkeys(
        ("ablate", "ablation", "meanablation", "meanablate", "zeroablation"), _ABLATION
    ),
    **dict.fromkeys(("zeroablate", "resampleablation", "knockout"), _ABLATION),
    **dict.fromkeys(("erank", "effectiverank", "statistic", "statistics"), _STATISTIC),
    **dict.fromkeys(
        ("causaltracing", "activationpatching", "denoise", "denoising", "noising", "interchange"),
        "lens_linear.patch(model, clean, corrupted, what=..., into=...)",
    ),
    **dict.fromkeys(
        ("bywriter", "meancontrast", "positionalqk", "splitscore", "scorebywriter"),
        "lens_linear.qk_attribution(model, tokens, 'L1H3') and its by_writer, mean_contrast",
    ),
    **dict.fromkeys(
        ("directpathpatching", "pathpatching", "edgepatching"),
        "lens_linear.path_patch(model, clean, corrupted, senders=..., receivers=...)",
    ),
    **dict.fromkeys(
        ("cut", "cutedge", "ablatepath"), "lens_linear.cut_path(model, 'L0H0', 'L1H3')"
    ),
    **dict.fromkeys(
        ("dla", "logitattribution", "attributelogits"),
        "lens_linear.direct_logit_attribution(model, tokens)",
    ),
    **dict.fromkeys(("bigramtable", "bigram"), "lens_linear.AttentionOnly(model).bigrams()"),
    **dict.fromkeys(("headscores", "scores"), "lens_linear.induction_scores(model)"),
    **dict.fromkeys(("addstatistic", "registerstatistic"), _STATISTIC),
    **dict.fromkeys(("generate", "sample"), "the model's own generate"),
    **dict.fromkeys(("widget", "dashboard"), "lens_linear.explore(model)"),
    **dict.fromkeys(("pca", "sae", "transcoder"), "another library: nothing here does that"),
    "resume": "checkpoint=path of linearity_profile or train: the same call goes on where it ended",
    **dict.fromkeys(("logitlens", "tunedlens"), "lens_linear.fit_lens(model, tokens)"),
    **dict.fromkeys(
        ("inductionheads", "prevtokenheads", "previoustokenheads", "duplicatetokenheads"),
        "lens_linear.induction_scores(model)",
    ),
    **dict.fromkeys(("directpath", "bigrams", "paths"), "lens_linear.AttentionOnly(model)"),
    **dict.fromkeys(
        ("virtualweights", "composition", "compose"),
        "lens_linear.composition_scores(model), or lens_linear.circuits.virtual_head",
    ),
    **dict.fromkeys(("getmodel", "loadmodel", "frompretrained"), "lens_linear.load(name)"),
    **dict.fromkeys(("todataframe", "plot", "show"), "that method of a result"),
}


def _advice(package: str, name: str) -> str:
    """Where the name, or one like it, is public."""
    places = _public_names()
    meant = _MEANT.get(name.lower().replace("_", ""))
    if name in places:
        figure = all(place.startswith("lens_linear.plots.") for place in places[name])
        numbers = f" (the numbers: {meant})" if figure and meant else ""
        return f"it is {' or '.join(places[name])}{numbers}"
    if meant:
        return f"you may want {meant}"
    spelled = {known.lower(): known for known in places}
    near = difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=0.72)
    akin = [known for known in spelled if _share_a_word(known, name.lower()) and known not in near]
    # Names come as their stubs do: top level first, then rooms.
    found = [places[spelled[known]][0] for known in (near + akin)[:3]]
    return f"did you mean {', '.join(found)}?" if found else f"dir({package}) lists what it has"


def _share_a_word(one: str, other: str) -> bool:
    """True where a word of one begins a word of the other: patch, patching."""
    pairs = [(a, b) for a in one.split("_") for b in other.split("_") if min(len(a), len(b)) > 3]
    return any(a.startswith(b) or b.startswith(a) for a, b in pairs)


@cache
def _public_names() -> dict[str, list[str]]:
    """Full names by short one, those at the top level first."""
    found: dict[str, list[str]] = {}
    for stub in sorted(ROOT.glob("**/__init__.pyi"), key=lambda path: (len(path.parts), path)):
        package = ".".join(("lens_linear", *stub.parent.relative_to(ROOT).parts))
        for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                for one in node.names:
                    found.setdefault(one.name, []).append(f"{package}.{one.name}")
    return found

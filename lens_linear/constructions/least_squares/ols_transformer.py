"""The least-squares layer as a whole transformer that the rest of the library opens.

Tan & Zhao's layer is a transformer layer: ``W_Q = W_K = W_V = L``, ``W_FFN = I``, ``W_p = P``. Here it
stands in a ``TransformerBridge``, with a residual stream, heads, an FFN and as many layers as asked for.
The vocabulary is the data: one token a row of x, first the context's rows, then the queries'. A sequence
is the whole context and one query at its end. The stream has slots:

    asks    x of a query and of a context row alike     read by W_Q
    tells   x of a context row, 0 for a query            read by W_K (paper's form: and by W_V)
    label   y of a context row, 0 for a query            read by W_V (in-context form)
    found   what attention has just found                written by W_O, read and cleared by the FFN
    answer  what the FFN passed on                       read by the unembedding W_U = W_p

The FFN is the identity on ``found``, written with a ReLU as ``relu(z) - relu(-z)``. It moves what was found
to ``answer`` and takes it off ``label``, so a second layer regresses what the first one left over. With the
context's own L the first layer leaves nothing; with another geometry k layers are k steps of Richardson's
iteration ``β ← β + L Lᵀ Xᵀ (Y - Xβ)``, whose error falls while ``‖I - Lᵀ Xᵀ X L‖ < 1``.

One layer is causal: the query comes last and sees all rows. Deeper stacks let every row see every other.

>>> import torch
>>> from lens_linear.constructions.least_squares.ols import OLSAttention
>>> layer = OLSAttention.from_data([[2.0, 1.0], [1.0, 2.0]], [4.0, 5.0])
>>> whole = ols_transformer(layer, [[1.0, 1.0], [0.0, 1.0]])
>>> whole.predict().flatten().round(decimals=6).tolist()
[3.0, 2.0]

Source: Tan & Zhao 2026, arXiv 2604.13656 (the layer); the slots and the depth are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import counted, require_instance, require_int
from lens_linear.constructions.least_squares.ols import Form, OLSAttention
from lens_linear.constructions.least_squares.spectral import float_rows
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import own_modes
from lens_linear.models.native import ModelSpec, bridge_from_module, native_module


@dataclass(frozen=True, eq=False)
class OLSTransformer:
    """A bridge whose forward pass is least squares, and the sequences to run it on.

    Attributes:
        model: the bridge, float64; its logits' first ``outputs`` columns are the prediction.
        tokens: one sequence a query: the context's rows in order, then the query.
        outputs: columns of y.
        slots: where each part of the residual stream stands, by name.
        form: of the layer it was made from.
        layers: depth.
    """

    model: TransformerBridge = field(repr=False)
    tokens: Int[Tensor, "query position"]
    outputs: int
    slots: dict[str, slice]
    form: Form
    layers: int

    def __repr__(self) -> str:
        queries, length = self.tokens.shape
        return (
            f"OLSTransformer ({self.form} form): {self.layers} layer{'s' * (self.layers > 1)} of linear "
            f"attention and identity FFN, stream of width {self.model.cfg.d_model}; "
            f"{counted(queries, 'query')} "
            f"after n = {counted(length - 1, 'context row')}, m = {counted(self.outputs, 'output')}"
        )

    def predict(self, tokens: Int[Tensor, "query position"] | None = None) -> Float[Tensor, "q m"]:
        """The prediction at the last position of every sequence, in units of y."""
        with torch.no_grad():
            logits = self.model(self.tokens if tokens is None else tokens)
        last: Tensor = logits[:, -1, : self.outputs]
        return last


@own_modes()
def ols_transformer(layer: OLSAttention, x_new: Any, *, layers: int = 1) -> OLSTransformer:
    """Stand a least-squares layer, with its weights and its context, in a whole transformer.

    ``prediction = x* W_Q W_Kᵀ Xᵀ V W_O`` at the last position of every sequence, with a residual stream
    and an identity FFN around it; the same number as ``layer.predict(x_new)`` for one layer.

    Args:
        layer: from :meth:`OLSAttention.from_data`, ``with_context``, or trained; without intercept (add
            a column of ones instead).
        x_new: ``[q, p]`` queries.
        layers: depth; more than one in the in-context form only, whose labels stand in the stream.

    Returns:
        OLSTransformer: ``.model`` (a bridge), ``.tokens``, ``.predict()`` in units of y.

    Raises:
        InvalidArgumentError: a layer with intercept, queries that do not fit, or depth in the paper's
            form.

    Source: Tan & Zhao 2026, arXiv 2604.13656; Richardson's iteration for the depth.

    Example:
        >>> layer = OLSAttention.from_data([[2.0, 1.0], [1.0, 2.0]], [4.0, 5.0])
        >>> ols_transformer(layer, [[1.0, 1.0]])
        OLSTransformer (in-context form): 1 layer of linear attention and identity FFN, stream of width 7; 1 query after n = 2 context rows, m = 1 output
    """  # noqa: E501
    require_instance("layer", layer, OLSAttention, advice="build it with OLSAttention.from_data")
    layers = require_int("layers", layers, minimum=1)
    queries = float_rows("x_new", x_new).detach().cpu()
    p, n, m = len(layer.W_Q), len(layer.context_x), layer.W_O.shape[1]
    if layer.intercept or bool(layer.b_O.detach().any()):
        raise InvalidArgumentError(
            "layer must have no intercept: the stream of a transformer has no head for the mean; add a "
            "column of ones to x and build it with intercept=False"
        )
    if queries.shape[1] != p:
        raise InvalidArgumentError(
            f"x_new must have {p} columns like the layer's data, got shape {tuple(queries.shape)}"
        )
    if layers > 1 and layer.form == "paper":
        raise InvalidArgumentError(
            "layers must be 1 in the paper's form: its labels stand in W_p, so a second layer has nothing "
            "left to regress; build the layer with form='in-context'"
        )
    found = m if layer.form == "in-context" else layer.W_V.shape[1]
    label = m if layer.form == "in-context" else 0
    slots, start = {}, 0
    for name, width in (
        ("asks", p),
        ("tells", p),
        ("label", label),
        ("found", found),
        ("answer", found),
    ):
        slots[name] = slice(start, start + width)
        start += width
    width = max(start, layer.W_Q.shape[1])  # a head is as wide as the stream
    spec = ModelSpec(
        n_layers=layers,
        d_model=width,
        n_heads=1,
        d_vocab=max(n + len(queries), m),
        n_ctx=n + 1,
        norm="none",
        activation="relu",
        d_mlp=2 * found,
        positions="none",
        attention="linear",
        causal=layers == 1,
    )
    module = native_module(spec).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        _embed(module, layer, queries, slots)
        for block in module.layers:
            _fill(block, layer, slots)
    model = bridge_from_module(module, spec, name="least squares")
    context = torch.arange(n).expand(len(queries), n)
    tokens = torch.cat([context, n + torch.arange(len(queries))[:, None]], dim=1)
    return OLSTransformer(model, tokens, m, slots, layer.form, layers)


def _embed(module: Any, layer: OLSAttention, queries: Tensor, slots: dict[str, slice]) -> None:
    """Rows of data as the rows of W_E, and the unembedding that reads ``answer``."""
    n = len(layer.context_x)
    table = module.tok_embed.weight
    table[:n, slots["asks"]] = layer.context_x.cpu().double()
    table[n : n + len(queries), slots["asks"]] = queries
    table[:n, slots["tells"]] = layer.context_x.cpu().double()
    head = torch.eye(layer.W_O.shape[1], dtype=torch.float64)
    if layer.form == "in-context":
        table[:n, slots["label"]] = layer.context_y.cpu().double()
    else:
        head = layer.W_O.detach().cpu().double().T  # W_p = P
    module.head.weight[: len(head), slots["answer"]] = head


def _fill(block: Any, layer: OLSAttention, slots: dict[str, slice]) -> None:
    """The weights of one block; torch's linear maps hold [out, in]."""
    w_q, w_k, w_v, w_o = (
        w.detach().cpu().double() for w in (layer.W_Q, layer.W_K, layer.W_V, layer.W_O)
    )
    r, v = w_q.shape[1], w_v.shape[1]
    scale = block.attn.scale * layer.share  # undoes the division by √d_head
    block.attn.q.weight[:r, slots["asks"]] = scale**0.5 * w_q.T
    block.attn.k.weight[:r, slots["tells"]] = scale**0.5 * w_k.T
    reads = "label" if layer.form == "in-context" else "tells"
    block.attn.v.weight[:v, slots[reads]] = w_v.T
    out = w_o.T if layer.form == "in-context" else torch.eye(v, dtype=torch.float64)
    block.attn.o.weight[slots["found"], :v] = out
    eye = torch.eye(len(out), dtype=torch.float64)
    passed = torch.cat([eye, -eye])  # relu(z) - relu(-z) = z
    block.mlp.fc_in.weight[:, slots["found"]] = passed
    block.mlp.fc_out.weight[slots["found"]] = -passed.T
    block.mlp.fc_out.weight[slots["answer"]] = passed.T
    if layer.form == "in-context":
        block.mlp.fc_out.weight[slots["label"]] = -passed.T

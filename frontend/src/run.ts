// One text through the model, wherever it was computed: here, by Python beforehand, or by the kernel.
import { unpack, unpackInts } from "./arrays.ts";
import type { Engine, Share } from "./engine.ts";
import { addRowTimes, logSumExp, softmax, topK } from "./maths.ts";
import type { PackedLens, PackedRun, Payload } from "./payload.ts";
import type { TextTokens } from "./tokens.ts";

export interface LensCell {
  id: number;
  p: number;
  kl: number; // nats
}

export interface Taken {
  components: Share[];
  paths: Share[] | null;
  pathsNote: string;
  logit: number;
  error: number; // of the sum
}

export interface Run {
  text: string;
  ids: number[];
  cut: number; // tokens of the text that the context had no room for
  attention(layer: number, head: number, query: number): Float32Array | null;
  next(position: number): { id: number; p: number }[];
  loss(position: number): number; // of the token at `position`, given those before; NaN for the first
  meanLoss: number;
  targets(position: number): number[] | null; // null: any token
  take(position: number, target: number, paths: boolean): Taken | null;
  sharesNote: string; // why no logit is taken apart, or nothing
  lens(kind: "linear" | "logit", layer: number, position: number): LensCell | null;
  ablated: string[];
}

const TOP = 10;

export function liveRun(payload: Payload, engine: Engine, tokens: TextTokens, text: string, ablated: string[]): Run {
  const { bos, n_ctx } = payload.model;
  const all = [...(bos === null ? [] : [bos]), ...tokens.encode(text)];
  const ids = all.slice(0, n_ctx);
  const rows = engine.run(ids, ablated);
  const losses = ids.map((id, p) => (p === 0 ? NaN : logSumExp(rows[p - 1]!.logits) - rows[p - 1]!.logits[id]!));
  return {
    text, ids, cut: all.length - ids.length, ablated,
    attention: (layer, head, query) => rows[query]?.pattern[layer * payload.model.n_heads + head] ?? null,
    next(position) {
      const p = softmax(rows[position]!.logits);
      return topK(p.subarray(0, payload.model.n_tokens), TOP).map((id) => ({ id, p: p[id]! }));
    },
    loss: (position) => losses[position] ?? NaN,
    meanLoss: losses.slice(1).reduce((a, b) => a + b, 0) / Math.max(1, ids.length - 1),
    targets: () => null,
    take(position, target, paths) {
      const parts = engine.components(position, target);
      const found = paths ? engine.paths(position, target) : null;
      const sums = [parts, ...(found ? [found] : [])];
      return {
        components: parts.terms, paths: found?.terms ?? null, logit: parts.logit,
        error: Math.max(...sums.map((one) => Math.abs(one.sum - one.logit))),
        pathsNote: found ? "" : `${count(engine.pathCount())} paths are too many to list here.`,
      };
    },
    sharesNote: "",
    lens: lensReader(payload, engine, rows),
  };
}

function count(n: number): string {
  return n < 1e9 ? n.toLocaleString("en") : `About 10 to the power of ${Math.round(Math.log10(n))}`;
}

type Rows = ReturnType<Engine["run"]>;
// A position that stands as before keeps its row, and what was read of it.
const readings = new WeakMap<Rows[number], Map<string, LensCell>>();
let lensWeights: { of: Payload; weight: Float32Array; bias: Float32Array } | null = null;

/** Reads a layer's stream through the final norm and unembedding, when a cell is looked at. */
function lensReader(payload: Payload, engine: Engine, rows: Rows): Run["lens"] {
  const { n_layers, d_model, final_norm, eps, d_vocab, n_tokens } = payload.model;
  const linear = payload.linear_lens;
  if (linear && lensWeights?.of !== payload) {
    lensWeights = { of: payload, weight: unpack(linear.weight).data, bias: unpack(linear.bias).data };
  }
  return (kind, layer, position) => {
    const row = rows[position];
    if (!row || (kind === "linear" && !linear)) return null;
    if (!readings.has(row)) readings.set(row, new Map());
    const kept = readings.get(row)!, key = `${kind} ${layer}`;
    const known = kept.get(key);
    if (known) return known;
    let x = row.stream[layer]!;
    if (kind === "linear" && layer < n_layers) {
      const out = lensWeights!.bias.slice(layer * d_model, (layer + 1) * d_model);
      addRowTimes(out, engine.normalise(x), lensWeights!.weight, layer * d_model * d_model);
      x = out;
    }
    const logits = layer === n_layers ? row.logits
      : engine.unembed(x, kind === "linear" ? "none" : final_norm, eps, d_vocab); // a fitted lens needs no second norm
    const p = softmax(logits);
    const id = topK(p.subarray(0, n_tokens), 1)[0]!;
    const cell = { id, p: p[id]!, kl: divergence(row.logits, logits) };
    kept.set(key, cell);
    return cell;
  };
}

function divergence(final: Float32Array, read: Float32Array): number {
  const a = logSumExp(final), b = logSumExp(read);
  let sum = 0;
  for (let i = 0; i < final.length; i++) sum += Math.exp(final[i]! - a) * (final[i]! - a - (read[i]! - b));
  return Math.max(0, sum);
}

export function storedRun(payload: Payload, packed: PackedRun): Run {
  const n = packed.ids.length;
  const { n_layers, n_heads } = payload.model;
  const pattern = packed.pattern && unpack(packed.pattern).data;
  const topIds = unpackInts(packed.top_ids), topP = unpack(packed.top_p).data;
  const k = topIds.shape[1]!;
  const losses = unpack(packed.loss).data;
  const shares = packed.shares && {
    names: packed.shares.components, targets: unpackInts(packed.shares.targets).data,
    values: unpack(packed.shares.values).data, logits: unpack(packed.shares.logits).data, error: packed.shares.max_error,
  };
  const each = shares ? shares.targets.length / n : 0;
  const grids = { logit: grid(packed.lens.logit), linear: grid(packed.lens.linear) };
  const known = [...losses].filter((v) => Number.isFinite(v));
  return {
    text: packed.text, ids: packed.ids, cut: 0, ablated: packed.ablated,
    attention(layer, head, query) {
      if (!pattern || layer >= n_layers) return null;
      const at = ((layer * n_heads + head) * n + query) * n;
      return pattern.slice(at, at + query + 1);
    },
    next: (position) => Array.from({ length: k }, (_, i) => ({ id: topIds.data[position * k + i]!, p: topP[position * k + i]! })),
    loss: (position) => losses[position] ?? NaN,
    meanLoss: known.reduce((a, b) => a + b, 0) / Math.max(1, known.length),
    targets: (position) => (shares ? [...new Set(shares.targets.slice(position * each, (position + 1) * each))] : []),
    take(position, target) {
      if (!shares) return null;
      const at = position * each;
      const which = shares.targets.slice(at, at + each).indexOf(target);
      if (which < 0) return null;
      const from = (at + which) * shares.names.length;
      const components = shares.names.map((name, i) => ({ name, value: shares.values[from + i]!, heads: 0 }));
      return {
        components, paths: null, logit: shares.logits[at + which]!, error: shares.error,
        pathsNote: payload.model.n_ffn
          ? "Paths are exact sums in attention-only models alone; this model has MLPs."
          : "Paths need a model that runs in the page.",
      };
    },
    sharesNote: packed.shares_note,
    lens(kind, layer, position) {
      const one = grids[kind];
      if (!one) return null;
      const at = layer * n + position;
      return { id: one.ids[at]!, p: one.p[at]!, kl: one.kl[at]! };
    },
  };
}

function grid(packed: PackedLens | null): { ids: Int32Array; p: Float32Array; kl: Float32Array } | null {
  return packed && { ids: unpackInts(packed.ids).data, p: unpack(packed.p).data, kl: unpack(packed.kl).data };
}

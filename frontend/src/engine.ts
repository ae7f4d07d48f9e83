// An attention-only transformer, run in the page. Weights come with the norms folded in, so a layer is
// (x @ W) / scale(x) + b. What was computed for a prefix of the text is kept.
import { unpack } from "./arrays.ts";
import { addRowTimes, dot, mean, normScale, softmax, timesTransposed } from "./maths.ts";
import type { ModelFacts, Packed, Payload } from "./payload.ts";

export interface Share {
  name: string;
  value: number;
  heads: number; // heads on the path: 0 is direct
}

export interface Shares {
  terms: Share[];
  sum: number;
  logit: number; // less the mean over the vocabulary, as the softmax sees it
}

export const MAX_TERMS = 3000;

interface Row {
  stream: Float32Array[]; // [layer + 1], before each block and after the last
  z: Float32Array[]; // [layer], heads side by side
  pattern: Float32Array[]; // [layer * heads + head], over keys 0..position
  logits: Float32Array;
}

export class Engine {
  readonly facts: ModelFacts;
  readonly weights: { [name: string]: Float32Array } = {};
  readonly ablated = new Set<string>();
  private readonly meanU: Float32Array;
  private readonly meanBias: number;
  private readonly scales: Float32Array | null;
  private rows: Row[] = [];
  private ids: number[] = [];
  private keys: Float32Array[][] = []; // [layer][position]
  private values: Float32Array[][] = [];

  constructor(payload: Pick<Payload, "model" | "arrays" | "scales">) {
    this.facts = payload.model;
    for (const [name, packed] of Object.entries(payload.arrays as { [name: string]: Packed })) {
      this.weights[name] = unpack(packed).data;
    }
    this.scales = payload.scales ? unpack(payload.scales).data : null;
    const { d_model, d_vocab, n_tokens } = this.facts;
    this.meanU = new Float32Array(d_model);
    for (let i = 0; i < d_model; i++) {
      this.meanU[i] = mean(this.weight("W_U").subarray(i * d_vocab, i * d_vocab + n_tokens));
    }
    this.meanBias = mean(this.weight("b_U").subarray(0, n_tokens));
    this.forget();
  }

  private weight(name: string): Float32Array {
    const found = this.weights[name];
    if (!found) throw new Error(`the page holds no ${name}`);
    return found;
  }

  private forget(from = 0): void {
    this.rows.length = Math.min(this.rows.length, from);
    this.ids.length = this.rows.length;
    for (let l = 0; l < this.facts.n_layers; l++) {
      (this.keys[l] ??= []).length = this.rows.length;
      (this.values[l] ??= []).length = this.rows.length;
    }
  }

  /** Run `ids`; positions that stand as before are not computed again. */
  run(ids: readonly number[], ablated: readonly string[] = []): Row[] {
    const same = ablated.length === this.ablated.size && ablated.every((name) => this.ablated.has(name));
    if (!same) {
      this.ablated.clear();
      for (const name of ablated) this.ablated.add(name);
      this.forget();
    }
    const n = Math.min(ids.length, this.facts.n_ctx);
    let kept = 0;
    while (kept < n && kept < this.ids.length && this.ids[kept] === ids[kept]) kept++;
    this.forget(kept);
    for (let p = kept; p < n; p++) this.step(ids[p]!, p);
    return this.rows;
  }

  private step(id: number, position: number): void {
    const { d_model, d_head, n_heads, n_layers, d_vocab, norm, final_norm, eps } = this.facts;
    const width = n_heads * d_head;
    let x = this.weight("W_E").slice(id * d_model, (id + 1) * d_model);
    const positions = this.weights["W_pos"];
    if (positions) for (let i = 0; i < d_model; i++) x[i]! += positions[position * d_model + i]!;
    const row: Row = { stream: [x], z: [], pattern: [], logits: new Float32Array(0) };
    for (let l = 0; l < n_layers; l++) {
      const inverse = 1 / normScale(x, norm, eps);
      const normed = x.map((v) => v * inverse);
      const q = this.project("Q", l, normed);
      const k = this.project("K", l, normed);
      this.rotate(q, position);
      this.rotate(k, position);
      this.keys[l]!.push(k);
      this.values[l]!.push(this.project("V", l, normed));
      const z = new Float32Array(width);
      for (let h = 0; h < n_heads; h++) row.pattern.push(this.attend(q, l, h, position, z));
      row.z.push(z);
      const next = x.slice();
      const bias = this.weight("b_O");
      for (let i = 0; i < d_model; i++) next[i]! += bias[l * d_model + i]!;
      for (let h = 0; h < n_heads; h++) {
        const at = (l * n_heads + h) * d_head;
        if (this.ablated.has(`L${l}H${h}`)) z.set(this.weight("mean_z").subarray(at, at + d_head), h * d_head);
        addRowTimes(next, z.subarray(h * d_head, (h + 1) * d_head), this.weight("W_O"), at * d_model);
      }
      x = next;
      row.stream.push(x);
    }
    row.logits = this.unembed(x, final_norm, eps, d_vocab);
    this.rows.push(row);
    this.ids.push(id);
  }

  /** `x / scale`, centred first in LayerNorm models: what a fitted lens reads. */
  normalise(x: Float32Array): Float32Array {
    const { final_norm, eps } = this.facts;
    const inverse = 1 / normScale(x, final_norm, eps), middle = final_norm === "layer" ? mean(x) : 0;
    return x.map((v) => (v - middle) * inverse);
  }

  unembed(x: Float32Array, norm: ModelFacts["norm"], eps: number, d_vocab: number): Float32Array {
    const inverse = 1 / normScale(x, norm, eps);
    const logits = this.weight("b_U").slice(0, d_vocab);
    addRowTimes(logits, x.map((v) => v * inverse), this.weight("W_U"));
    return logits;
  }

  private project(letter: "Q" | "K" | "V", layer: number, x: Float32Array): Float32Array {
    const { d_model, d_head, n_heads } = this.facts;
    const out = new Float32Array(n_heads * d_head);
    const weight = this.weight(`W_${letter}`);
    const bias = this.weight(`b_${letter}`);
    for (let h = 0; h < n_heads; h++) {
      const at = layer * n_heads + h;
      const part = out.subarray(h * d_head, (h + 1) * d_head);
      part.set(bias.subarray(at * d_head, (at + 1) * d_head));
      addRowTimes(part, x, weight, at * d_model * d_head);
    }
    return out;
  }

  /** Turn queries or keys of all heads at a position, in place; nothing without rotary positions. */
  private rotate(x: Float32Array, position: number): void {
    const cos = this.weights["cos"];
    const sin = this.weights["sin"];
    if (!cos || !sin) return;
    const turned = cos.length / this.facts.n_ctx;
    const half = turned / 2;
    for (let start = 0; start < x.length; start += this.facts.d_head) {
      const old = x.slice(start, start + turned);
      for (let i = 0; i < turned; i++) {
        let quarter: number;
        if (this.facts.rotary_adjacent) quarter = i % 2 ? old[i - 1]! : -old[i + 1]!;
        else quarter = i < half ? -old[i + half]! : old[i - half]!;
        const at = position * turned + i;
        x[start + i] = old[i]! * cos[at]! + quarter * sin[at]!;
      }
    }
  }

  private attend(q: Float32Array, layer: number, head: number, position: number, z: Float32Array): Float32Array {
    const { d_head } = this.facts;
    const from = head * d_head;
    const query = q.subarray(from, from + d_head);
    const scale = this.weight("scale")[layer]!;
    const scores = new Float32Array(position + 1);
    const keys = this.keys[layer]!;
    for (let s = 0; s <= position; s++) scores[s] = scale * dot(query, keys[s]!.subarray(from, from + d_head));
    const pattern = softmax(scores);
    const values = this.values[layer]!;
    for (let s = 0; s <= position; s++) {
      const weight = pattern[s]!;
      const value = values[s]!;
      for (let i = from; i < from + d_head; i++) z[i]! += weight * value[i]!;
    }
    return pattern;
  }

  /** Direction in the last stream that is the logit of a token above the mean logit. */
  private reader(target: number, position: number): Float32Array {
    const { d_model, d_vocab, final_norm, eps, n_layers } = this.facts;
    const inverse = 1 / normScale(this.rows[position]!.stream[n_layers]!, final_norm, eps);
    const out = new Float32Array(d_model);
    for (let i = 0; i < d_model; i++) {
      out[i] = (this.weight("W_U")[i * d_vocab + target]! - this.meanU[i]!) * inverse;
    }
    return out;
  }

  private centredLogit(target: number, position: number): number {
    const logits = this.rows[position]!.logits;
    return logits[target]! - mean(logits.subarray(0, this.facts.n_tokens));
  }

  private headOutput(layer: number, head: number, z: Float32Array): Float32Array {
    const { d_head, d_model, n_heads } = this.facts;
    const out = new Float32Array(d_model);
    const part = z.subarray(head * d_head, (head + 1) * d_head);
    addRowTimes(out, part, this.weight("W_O"), (layer * n_heads + head) * d_head * d_model);
    return out;
  }

  /** What every component wrote of a logit: they add up to it. */
  components(position: number, target: number): Shares {
    const { d_model, n_layers, n_heads } = this.facts;
    const row = this.rows[position]!;
    const reader = this.reader(target, position);
    const terms = this.sources(position, (x) => dot(reader, x));
    for (let l = 0; l < n_layers; l++) {
      for (let h = 0; h < n_heads; h++) {
        terms.push({ name: `L${l}H${h}`, value: dot(reader, this.headOutput(l, h, row.z[l]!)), heads: 1 });
      }
      const bias = this.weight("b_O").subarray(l * d_model, (l + 1) * d_model);
      terms.push({ name: `attention bias ${l}`, value: dot(reader, bias), heads: 0 });
    }
    return this.added(terms, target, position);
  }

  private sources(position: number, read: (x: Float32Array) => number): Share[] {
    const { d_model } = this.facts;
    const id = this.ids[position]!;
    const terms = [{ name: "token", value: read(this.weight("W_E").subarray(id * d_model, (id + 1) * d_model)), heads: 0 }];
    const rows = this.weights["W_pos"];
    if (rows) {
      const at = position * d_model;
      terms.push({ name: "position", value: read(rows.subarray(at, at + d_model)), heads: 0 });
    }
    return terms;
  }

  private added(terms: Share[], target: number, position: number): Shares {
    const bias = this.weight("b_U")[target]! - this.meanBias;
    if (bias !== 0) terms.push({ name: "output bias", value: bias, heads: 0 });
    const sum = terms.reduce((total, term) => total + term.value, 0);
    return { terms, sum, logit: this.centredLogit(target, position) };
  }

  pathCount(): number {
    const { n_layers, n_heads } = this.facts;
    return (this.weights["W_pos"] ? 2 : 1) * (1 + n_heads) ** n_layers;
  }

  /** Every end-to-end path's share of a logit, attention and norm scales held as they are; biases apart. */
  paths(position: number, target: number): Shares | null {
    if (this.pathCount() > MAX_TERMS) return null;
    const terms: Share[] = [];
    const start = new Map([[position, this.reader(target, position)]]);
    this.follow(start, this.facts.n_layers, "", 0, terms);
    return this.added(terms, target, position);
  }

  /** `reading`: for each position, the direction that a chain of heads above `below` reads there. */
  private follow(
    reading: Map<number, Float32Array>, below: number, chain: string, depth: number, terms: Share[],
  ): void {
    const { n_heads, d_model, d_head, norm, eps } = this.facts;
    const totals = new Map<string, number>();
    let bias = 0;
    let amount = new Float32Array(d_model);
    for (const [s, direction] of reading) {
      for (const source of this.sources(s, (x) => dot(direction, x))) {
        totals.set(source.name, (totals.get(source.name) ?? 0) + source.value);
      }
      for (let i = 0; i < d_model; i++) amount[i]! += direction[i]!;
    }
    const end = chain ? ` → ${chain}` : "";
    for (const [name, value] of totals) terms.push({ name: `${name}${end}`, value, heads: depth });
    for (let l = 0; l < below; l++) bias += this.constant(l, amount);
    if (bias !== 0) terms.push({ name: `biases${end}`, value: bias, heads: depth });
    for (let l = below - 1; l >= 0; l--) {
      for (let h = 0; h < n_heads; h++) {
        const name = `L${l}H${h}`;
        if (this.ablated.has(name)) continue; // its mean output is one of the constants
        const at = (l * n_heads + h) * d_model * d_head;
        const next = new Map<number, Float32Array>();
        const gathered: Float32Array[] = []; // by position: what is read there, inside the head
        for (const [p, direction] of reading) {
          const values = timesTransposed(this.weight("W_O"), direction, d_head, at);
          const pattern = this.rows[p]!.pattern[l * n_heads + h]!;
          for (let s = 0; s <= p; s++) {
            const sum = (gathered[s] ??= new Float32Array(d_head));
            const weight = pattern[s]!;
            for (let i = 0; i < d_head; i++) sum[i]! += weight * values[i]!;
          }
        }
        for (let s = 0; s < gathered.length; s++) {
          const inverse = 1 / normScale(this.rows[s]!.stream[l]!, norm, eps);
          const inside = gathered[s]!.map((v) => v * inverse);
          next.set(s, timesTransposed(this.weight("W_V"), inside, d_model, at));
        }
        this.follow(next, l, chain ? `${name} → ${chain}` : name, depth + 1, terms);
      }
    }
  }

  /** What a layer writes whatever it attends to: b_O, b_V through W_O, and ablated heads' means. */
  private constant(layer: number, reader: Float32Array): number {
    const { n_heads, d_head, d_model } = this.facts;
    let sum = dot(this.weight("b_O").subarray(layer * d_model, (layer + 1) * d_model), reader);
    for (let h = 0; h < n_heads; h++) {
      const at = (layer * n_heads + h) * d_head;
      const values = timesTransposed(this.weight("W_O"), reader, d_head, at * d_model);
      const source = this.ablated.has(`L${layer}H${h}`) ? "mean_z" : "b_V";
      sum += dot(this.weight(source).subarray(at, at + d_head), values);
    }
    return sum;
  }

  /** Scores a query token's embedding gives to every key token `distance` back, typical norm scales in. */
  qkRow(layer: number, head: number, token: number, distance: number): Float32Array {
    const { d_model, d_head, n_heads, n_tokens } = this.facts;
    const at = (layer * n_heads + head) * d_model * d_head;
    const q = new Float32Array(d_head);
    addRowTimes(q, this.embedding(token), this.weight("W_Q"), at);
    this.rotate(q, distance); // the key stands at 0, where nothing turns
    const read = timesTransposed(this.weight("W_K"), q, d_model, at);
    const out = timesTransposed(this.weight("W_E"), read, n_tokens);
    const scale = this.weight("scale")[layer]! / this.typical(token);
    for (let i = 0; i < n_tokens; i++) out[i]! *= scale / this.typical(i);
    return out;
  }

  /** What attending to a token adds to every logit above the mean, typical norm scale in. */
  ovRow(layer: number, head: number, token: number): Float32Array {
    const { d_model, d_head, n_heads, d_vocab, n_tokens } = this.facts;
    const at = (layer * n_heads + head) * d_model * d_head;
    const value = new Float32Array(d_head);
    addRowTimes(value, this.embedding(token), this.weight("W_V"), at);
    const written = new Float32Array(d_model);
    addRowTimes(written, value, this.weight("W_O"), at);
    const all = new Float32Array(d_vocab);
    addRowTimes(all, written, this.weight("W_U"));
    const out = all.subarray(0, n_tokens);
    const middle = mean(out);
    const scale = 1 / this.typical(token);
    return out.map((v) => (v - middle) * scale);
  }

  private embedding(token: number): Float32Array {
    const { d_model } = this.facts;
    return this.weight("W_E").subarray(token * d_model, (token + 1) * d_model);
  }

  private typical(token: number): number {
    return this.scales ? this.scales[token]! : 1;
  }
}

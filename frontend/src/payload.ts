// What Python writes into the page. `Packed` arrays are unpacked once, when the page opens.

export interface Packed {
  dtype: "float32" | "float16" | "int32" | "uint8";
  shape: number[];
  data: string;
}

export interface ModelFacts {
  name: string;
  n_layers: number;
  n_heads: number;
  n_key_value_heads: number;
  d_model: number;
  d_head: number;
  d_vocab: number;
  n_tokens: number; // outputs that stand for tokens; rows behind them are padding
  n_ctx: number;
  positions: string;
  norm: "none" | "layer" | "rms";
  final_norm: "none" | "layer" | "rms";
  eps: number;
  bos: number | null;
  parameters: number;
  n_ffn: number;
  rotary_adjacent?: boolean;
  sha256: string;
}

export interface Score {
  words: string;
  unit: string;
  signed: boolean;
  control?: string | number; // the null: a column, or the value itself
  controlWords?: string;
  se?: string; // column of its standard error
}

export interface HeadRow {
  [column: string]: number | string | null;
}

export interface Direction {
  value: number;
  near_equal: boolean;
  read: [number[], number[]]; // token ids at the + and - end
  write: [number[], number[]];
}

export interface Trigram {
  source: number;
  destination: number;
  out: number;
  attention: number;
  effect: number;
}

export interface HeadDetail {
  eigenvalues: [number, number][];
  directions: Direction[];
  trigrams: Trigram[];
}

export interface HeadTables {
  tokens: number[];
  qk_ids: Packed; // [head, token, k]
  qk: Packed;
  raised_ids: Packed;
  raised: Packed;
  lowered_ids: Packed;
  lowered: Packed;
  distance: number;
}

export interface LinearityRow {
  [column: string]: number | null;
}

export interface Linearity {
  skip: number;
  n_tokens: number;
  n_fit: number;
  rows: LinearityRow[];
}

export interface PackedLens {
  ids: Packed; // [layer, position]
  p: Packed;
  kl: Packed; // nats, to the model's own prediction
}

export interface PackedRun {
  text: string;
  ids: number[];
  pattern: Packed | null; // [layer, head, query, key]
  top_ids: Packed; // [position, k]
  top_p: Packed;
  loss: Packed; // [position], nats; the first is unknown
  lens: { logit: PackedLens | null; linear: PackedLens | null };
  shares: {
    components: string[];
    targets: Packed; // [position, k]
    values: Packed; // [position, k, component]
    logits: Packed; // [position, k], logit less the mean over the vocabulary
    max_error: number;
  } | null;
  shares_note: string; // why there are none
  ablated: string[];
}

export interface Payload {
  schema: 1;
  kind: "live" | "run" | "kernel";
  version: string;
  made: Record<string, unknown>;
  model: ModelFacts;
  vocabulary: string[] | { [id: string]: string };
  tokenizer: object | null;
  tokenizer_config: object | null;
  heads: HeadRow[];
  heads_note: string;
  added_scores: { [name: string]: Score }; // of installed packages
  head_details: { [name: string]: HeadDetail };
  head_tables: HeadTables | null;
  composition: { scores: Packed; mean: Packed; best_random: number[]; n_random: number; places: Packed | null } | null; // places: the pairs that are kept
  linearity: Linearity[];
  scales: Packed | null; // [token], typical scale of the norm before attention
  mean_scale: number;
  arrays: { [name: string]: Packed } | null;
  linear_lens: { weight: Packed; bias: Packed; n_tokens: number } | null;
  lens_note: string;
  sentinel: { ids: number[]; logits: Packed } | null;
  tolerance: number;
  prompts: string[];
  first_ids: number[]; // tokens of the first prompt
  runs: PackedRun[];
  missing: { [view: string]: string[] };
}

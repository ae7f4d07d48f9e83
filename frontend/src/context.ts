// What every view gets: the payload, the selection and how to change it, the text's run.
import type { Engine } from "./engine.ts";
import type { HeadRow, Payload } from "./payload.ts";
import type { Run } from "./run.ts";
import type { Selection } from "./selection.ts";
import { tokenText } from "./tokens.ts";

export interface Context {
  payload: Payload;
  engine: Engine | null;
  selection: Selection;
  select: (change: Partial<Selection>) => void;
  run: Run | null;
  whole: Run | null; // the same text with no head taken away
  point: (position: number | null) => void; // shows a position in all views until the pointer leaves
  chosen: number; // the selected position, whatever is pointed at
  waiting: boolean;
  problem: string;
  text: (id: number) => string;
}

export function headOf(payload: Payload, name: string): { layer: number; head: number; row: HeadRow | undefined } {
  const found = /^L(\d+)H(\d+)$/.exec(name);
  const layer = Math.min(Number(found?.[1] ?? 0), Math.max(0, payload.model.n_layers - 1));
  const head = Math.min(Number(found?.[2] ?? 0), Math.max(0, payload.model.n_heads - 1));
  return { layer, head, row: payload.heads.find((row) => row["layer"] === layer && row["index"] === head) };
}

export function words(payload: Payload): (id: number) => string {
  return (id) => tokenText(payload, id);
}

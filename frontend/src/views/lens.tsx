// What each layer already predicts at each position.
import { useRef } from "preact/hooks";
import { scaleOf } from "../colours.ts";
import type { Context } from "../context.ts";
import { Choice, Grid, Legend, Missing, number, percent, useLater } from "../parts.tsx";
import type { Run } from "../run.ts";
import { label } from "../tokens.ts";
import { at } from "./text.tsx";

type Cells = ReturnType<Run["lens"]>[][];

/** Cells of a run and kind, read once: a live page decodes every one of them. */
function useReadings(): (run: Run, kind: "linear" | "logit", n_layers: number) => Cells {
  const kept = useRef<{ run: Run; kind: string; cells: Cells } | null>(null);
  return (run, kind, n_layers) => {
    if (kept.current?.run !== run || kept.current.kind !== kind) {
      const cells = Array.from({ length: n_layers + 1 }, (_, l) => run.ids.map((_, p) => run.lens(kind, l, p)));
      kept.current = { run, kind, cells };
    }
    return kept.current.cells;
  };
}

export function LensView(context: Context) {
  const { payload, selection, select, text } = context;
  const run = useLater(context.run, 200);
  const readings = useReadings();
  const { n_layers } = payload.model;
  if (!n_layers) return <p>No layers between the embedding and the output.</p>;
  const both = run?.lens("linear", 0, 0) != null;
  const kind = both ? selection.lens : "logit";
  if (!run || run.lens(kind, 0, 0) === null) return <><p class="note">No text to read.</p><Missing notes={payload.missing["lens"]} /></>;
  const position = at(context);
  const n = run.ids.length;
  const cells = readings(run, kind, n_layers);
  const final = cells[n_layers]!;
  const scale = { low: 0, high: 1, signed: false };
  const gaps = cells.map((row) => row.reduce((sum, cell) => sum + (cell?.kl ?? 0), 0) / n);
  const order = Array.from({ length: n_layers + 1 }, (_, i) => n_layers - i); // the output on top
  const name = (layer: number) => (layer === 0 ? "embedding" : layer === n_layers ? "output" : `after layer ${layer - 1}`);
  return (
    <>
      <Choice words="Read by" value={kind} choose={(lens) => select({ lens: lens as "linear" | "logit" })}
        options={[...(both ? [["linear", "linear lens"] as [string, string]] : []), ["logit", "logit lens"]]} />
      <Grid name="Layer by position: likeliest next token" scale={scale} rows={order.map(name)}
        columns={run.ids.map((id) => <span class="turned">{label(text(id))}</span>)}
        selected={{ row: 0, column: position }} choose={(_, column) => select({ position: column, token: run.ids[column]!, target: null })}
        cell={(row, p) => {
          const layer = order[row]!;
          const one = cells[layer]![p];
          if (!one) return { value: null, title: "not on this page" };
          const same = final[p]?.id === one.id;
          return {
            value: one.p, text: <span class={same ? "same" : ""}>{label(text(one.id))}</span>,
            title: `${name(layer)}, position ${p} ${label(text(run.ids[p]!))}: ${label(text(one.id))}, ${percent(one.p)}, ${number(one.kl, 2)} nats from the output`,
          };
        }} />
      <Legend scale={scaleOf([0, 1], false)} words="probability of the likeliest token; underlined where the output says the same" />
      <p class="note">Mean distance (KL) to the model's own prediction: {gaps.map((gap, l) => `${name(l)} ${number(gap, 2)}`).join(", ")} nats; 0 is that prediction itself; n = {n} positions. {kind === "linear" ? payload.lens_note : "Logit lens: the stream as it is, through the final norm and the unembedding."}</p>
      <Missing notes={payload.missing["lens"]} />
    </>
  );
}

// What each layer already predicts at each position.
import { scaleOf } from "../colours.ts";
import type { Context } from "../context.ts";
import { Choice, Grid, Legend, Missing, number, percent, useLater } from "../parts.tsx";
import { label } from "../tokens.ts";
import { at } from "./text.tsx";

export function LensView(context: Context) {
  const { payload, selection, select, text } = context;
  const run = useLater(context.run, 200);
  const { n_layers } = payload.model;
  if (!n_layers) return <p>No layers between the embedding and the output.</p>;
  const both = run?.lens("linear", 0, 0) != null;
  const kind = both ? selection.lens : "logit";
  if (!run || run.lens(kind, 0, 0) === null) return <><p class="note">No text to read.</p><Missing notes={payload.missing["lens"]} /></>;
  const position = at(context);
  const n = run.ids.length;
  const cells = Array.from({ length: n_layers + 1 }, (_, l) => Array.from({ length: n }, (_, p) => run.lens(kind, l, p)));
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
      <p class="note">Mean distance (KL) to the model's own prediction: {gaps.map((gap, l) => `${name(l)} ${number(gap, 2)}`).join(", ")} nats; n = {n} positions. {kind === "linear" ? payload.lens_note : "Logit lens: the stream as it is, through the final norm and the unembedding."}</p>
      <Missing notes={payload.missing["lens"]} />
    </>
  );
}

// What each layer already predicts at each position.
import { useMemo } from "preact/hooks";
import { scaleOf } from "../colours.ts";
import type { Context } from "../context.ts";
import { Choice, clamp, Grid, Legend, Missing, number, percent, useLater } from "../parts.tsx";
import type { Run } from "../run.ts";
import { label } from "../tokens.ts";

export function LensView(context: Context) {
  const { payload, selection, select } = context;
  const run = useLater(context.run);
  const { n_layers } = payload.model;
  const both = n_layers > 0 && run?.lens("linear", 0, 0) != null;
  const kind = both ? selection.lens : "logit";
  const position = clamp(selection.position, run?.ids.length ?? 1);
  // While a text is typed its run is not settled: nothing here changes, so nothing is drawn.
  const grid = useMemo(() => n_layers && run?.lens(kind, 0, 0) ? <Reading {...context} run={run} kind={kind} position={position} /> : null,
    [payload, run, kind, position]);
  if (!n_layers) return <p>No layers between the embedding and the output.</p>;
  return (
    <>
      {grid ? (
        <Choice words="Read by" value={kind} choose={(lens) => select({ lens: lens as "linear" | "logit" })}
          options={[...(both ? [["linear", "linear lens"] as [string, string]] : []), ["logit", "logit lens"]]} />
      ) : <p class="note">No text to read.</p>}
      {grid}
      <Missing notes={payload.missing["lens"]} />
    </>
  );
}

function Reading({ payload, select, text, run, kind, position }: Context & { run: Run; kind: "linear" | "logit"; position: number }) {
  const { n_layers } = payload.model;
  const n = run.ids.length;
  const cells = Array.from({ length: n_layers + 1 }, (_, l) => run.ids.map((_, p) => run.lens(kind, l, p)));
  const final = cells[n_layers]!;
  const gaps = cells.map((row) => row.reduce((sum, cell) => sum + (cell?.kl ?? 0), 0) / n);
  const order = Array.from({ length: n_layers + 1 }, (_, i) => n_layers - i); // the output on top
  const name = (layer: number) => (layer === 0 ? "embedding" : layer === n_layers ? "output" : `after layer ${layer - 1}`);
  return (
    <>
      <Grid name="Layer by position: likeliest next token" scale={{ low: 0, high: 1, signed: false }} rows={order.map(name)}
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
    </>
  );
}

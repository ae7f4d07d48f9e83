// One head: what it looks for, what it writes, with whom it composes.
import { useMemo, useRef, useState } from "preact/hooks";
import { unpack, unpackInts } from "../arrays.ts";
import { headOf, type Context } from "../context.ts";
import { mean, topK } from "../maths.ts";
import { Bars, Missing, number, Token, type Bar } from "../parts.tsx";
import type { HeadDetail, HeadTables } from "../payload.ts";
import { label } from "../tokens.ts";
import { KINDS, useComposition } from "./map.tsx";

const LISTED = 10;

export function HeadView(given: Context) {
  const title = useRef<HTMLParagraphElement>(null);
  const context: Context = { ...given, select: (change) => { // what was chosen may go: the keyboard's place is kept above it
    given.select(change);
    title.current?.focus({ preventScroll: true });
  } };
  const { payload, selection, select, engine, text } = context;
  const at = headOf(payload, selection.head);
  const rotary = payload.model.positions === "rotary";
  const tables = useMemo(() => payload.head_tables && readTables(payload.head_tables), [payload]);
  if (!payload.model.n_layers) return <p>No layers, so no heads.</p>;
  const rows = engine
    ? liveRows(context, at.layer, at.head)
    : tables?.(at.layer * payload.model.n_heads + at.head, selection.token) ?? null;
  const bars = (list: Entry[]): Bar[] => list.map(({ id, value }) => ({
    key: id, value, name: <Token text={text(id)} />, shown: number(value, 2), choose: () => select({ token: id }),
    title: `Select ${label(text(id))}`,
  }));
  const detail = payload.head_details[selection.head];
  const scaled = payload.model.norm === "none" ? " The model has no norm." : " Divided by the norm scale that is typical of the tokens' embeddings.";
  const among = (spread: Spread | null) => spread
    ? ` Null: ${number(spread.mean, 2)} ± ${number(spread.sd, 2)} (mean and sd over n = ${payload.model.n_tokens.toLocaleString("en")} tokens).` : "";
  return (
    <>
      <p class="lead" ref={title} tabIndex={-1}><strong>{selection.head}</strong>, token <Token text={text(selection.token)} /></p>
      <TokenSearch {...context} />
      {rotary && (engine ? (
        <label class="choice">Distance from query to key: {selection.distance}{" "}
          <input type="range" min="0" max={Math.min(64, payload.model.n_ctx - 1)} value={selection.distance}
            onInput={(event) => given.select({ distance: Number(event.currentTarget.value) })} />
        </label>
      ) : <p class="note">Keys one position back: with rotary positions a row holds for one distance.</p>)}
      {at.layer > 0 && <p class="note">In layer {at.layer} the head also reads what earlier heads wrote, below under composition partners; these rows show the part from the token's own embedding alone.</p>}
      {rows ? (
        <div class="columns">
          <section><h3>Looks for (QK)</h3><Bars bars={bars(rows.keys)} unit="score before the softmax" note={`As a query, the token's own embedding asks for these keys; positions and biases are out.${scaled}${among(rows.qk)}`} /></section>
          <section><h3>Raises (OV)</h3><Bars bars={bars(rows.raised)} unit="logits above the mean" note={`What attending to the token adds.${scaled}${among(rows.ov)}`} /></section>
          <section><h3>Suppresses (OV)</h3><Bars bars={bars(rows.lowered)} unit="logits above the mean" note={scaled.trim()} /></section>
        </div>
      ) : <p class="missing">No row of this token is on the page; choose one of the tokens in the prompts.</p>}
      <Partners {...context} />
      {detail && <Details detail={detail} {...context} />}
      <Missing notes={payload.missing["head"]} />
    </>
  );
}

interface Entry { id: number; value: number }
interface Spread { mean: number; sd: number }
interface Rows { keys: Entry[]; raised: Entry[]; lowered: Entry[]; qk: Spread | null; ov: Spread | null }

function spread(row: Float32Array): Spread {
  const middle = mean(row);
  return { mean: middle, sd: Math.sqrt(mean(row.map((v) => (v - middle) ** 2))) };
}

function liveRows({ engine, selection }: Context, layer: number, head: number): Rows | null {
  if (!engine) return null;
  const qk = engine.qkRow(layer, head, selection.token, selection.distance);
  const ov = engine.ovRow(layer, head, selection.token);
  const list = (row: Float32Array, sign: number) => topK(row, LISTED, sign).map((id) => ({ id, value: row[id]! }));
  return { keys: list(qk, 1), raised: list(ov, 1), lowered: list(ov, -1), qk: spread(qk), ov: spread(ov) };
}

function readTables(tables: HeadTables): (head: number, token: number) => Rows | null {
  const k = tables.qk.shape[2]!, n = tables.tokens.length;
  const part = (values: HeadTables["qk"], ids: HeadTables["qk"]) => {
    const v = unpack(values).data, i = unpackInts(ids).data;
    return (at: number) => Array.from({ length: k }, (_, j) => ({ id: i[at + j]!, value: v[at + j]! }));
  };
  const keys = part(tables.qk, tables.qk_ids), raised = part(tables.raised, tables.raised_ids);
  const lowered = part(tables.lowered, tables.lowered_ids);
  return (head, token) => {
    const row = tables.tokens.indexOf(token);
    if (row < 0) return null;
    const at = (head * n + row) * k;
    return { keys: keys(at), raised: raised(at), lowered: lowered(at), qk: null, ov: null };
  };
}

function TokenSearch({ payload, select, text }: Context) {
  const [asked, setAsked] = useState("");
  const known = useMemo(() => {
    const ids = payload.head_tables?.tokens ?? (Array.isArray(payload.vocabulary) ? payload.vocabulary.slice(0, payload.model.n_tokens).map((_, i) => i) : []);
    return ids.map((id) => ({ id, text: text(id), label: label(text(id)) }));
  }, [payload]);
  const low = asked.toLowerCase();
  const found = asked === "" ? [] : known
    .filter((one) => one.text.toLowerCase().includes(low) || one.label.toLowerCase().includes(low))
    .sort((a, b) => a.text.length - b.text.length).slice(0, 14);
  return (
    <div class="search">
      <label class="choice">Find a token{" "}
        <input type="search" value={asked} placeholder="e.g. king" onInput={(event) => setAsked(event.currentTarget.value)} />
      </label>
      <div class="chips" role="status">
        {found.map((one) => <button key={one.id} type="button" onClick={() => { select({ token: one.id }); setAsked(""); }}><Token text={one.text} /></button>)}
        {asked !== "" && !found.length && <span class="note">No token holds this text.</span>}
      </div>
    </div>
  );
}

function Partners({ payload, selection, select }: Context) {
  const composition = useComposition(payload);
  const [all, setAll] = useState(false);
  if (!composition) return null;
  const at = headOf(payload, selection.head);
  const strong = composition.partners(at).filter((one) => all || one.above);
  const column = (reads: boolean, title: string) => (
    <section>
      <h3>{title}</h3>
      <div class="scroll" tabIndex={0} role="region" aria-label={title}><table class="plain">
        <thead><tr><th scope="col">Head</th><th scope="col">through</th><th scope="col">score</th><th scope="col">ratio</th></tr></thead>
        <tbody>{strong.filter((one) => one.reads === reads).slice(0, 12).map((one) => (
          <tr key={one.kind + one.name}>
            <th scope="row"><button type="button" class="link" onClick={() => select({ head: one.name })}>{one.name}</button></th>
            <td>{one.kind}</td><td>{number(one.score)}</td><td>{number(one.ratio, 2)}</td>
          </tr>))}
        </tbody>
      </table></div>
      {!strong.some((one) => one.reads === reads) && <p class="note">None above the best random pair.</p>}
    </section>
  );
  return (
    <>
      <h3>Composition partners</h3>
      <label class="choice"><input type="checkbox" checked={all} onInput={(event) => setAll(event.currentTarget.checked)} /> Show those below the best random pair too</label>
      <div class="columns">{column(true, `${selection.head} reads from`)}{column(false, `${selection.head} is read by`)}</div>
      <p class="note">Share of what one head writes that the other reads, through its queries (Q), keys (K) or values (V); the null is {composition.n_random} random rotations of the same two heads, the ratio is to it. Of as many random pairs the best reaches {KINDS.map((kind, i) => `${kind} ${number(composition.best[i]!, 2)}`).join(", ")}. An induction head reads a previous-token head through K.</p>
    </>
  );
}

function Details({ detail, text, select }: Context & { detail: HeadDetail }) {
  const list = (ids: number[]) => ids.map((id, i) => <button key={i} type="button" class="chip" onClick={() => select({ token: id })}><Token text={text(id)} /></button>);
  return (
    <>
      {detail.trigrams.length > 0 && (
        <details>
          <summary>Strongest skip-trigrams: source … destination → out</summary>
          <div class="scroll" tabIndex={0} role="region" aria-label="Skip-trigrams"><table class="plain">
            <thead><tr><th scope="col">source</th><th scope="col">destination</th><th scope="col">out</th><th scope="col">attention</th><th scope="col">logits</th></tr></thead>
            <tbody>{detail.trigrams.map((one, i) => (
              <tr key={i}><td><Token text={text(one.source)} /></td><td><Token text={text(one.destination)} /></td><td><Token text={text(one.out)} /></td><td>{number(one.attention, 2)}</td><td>{number(one.effect, 2)}</td></tr>
            ))}</tbody>
          </table></div>
          <p class="note">Attention is estimated among 32 keys, from embeddings alone, at the norm scale that is typical of them; logits are attention × OV, 0 for no effect. Largest first, of all triples.</p>
        </details>
      )}
      <details>
        <summary>Eigenvalues of OV in the plane</summary>
        <Plane points={detail.eigenvalues} />
        <p class="note">{detail.eigenvalues.length} eigenvalues that are not zero, in logits, the norm's scale left out; null: as many to the left as to the right. To the right: tokens raise themselves (copying); to the left: they suppress themselves.</p>
      </details>
      <details>
        <summary>Singular directions of OV in tokens</summary>
        <p class="note">σ is the gain from an embedding to logits along one direction, the norm's scale left out; 0 for a head that writes nothing. Tokens at both ends of each direction.</p>
        {detail.directions.map((one, i) => (
          <div key={i} class="direction">
            <strong>{i + 1}. σ = {number(one.value, 2)}</strong>{one.near_equal && <small> (near-equal to a neighbour: only the space they span is determined)</small>}
            <div>reads {list(one.read[0])} writes {list(one.write[0])}</div>
            <div>reads {list(one.read[1])} writes {list(one.write[1])}</div>
          </div>
        ))}
      </details>
    </>
  );
}

function Plane({ points }: { points: [number, number][] }) {
  const most = Math.max(...points.map(([x, y]) => Math.hypot(x, y)), 1e-9) * 1.1;
  const place = (v: number) => 110 + (v / most) * 105;
  return (
    <svg viewBox="0 0 220 220" class="plane" role="img" aria-label={`Eigenvalues of OV; ${points.filter(([x]) => x > 0).length} of ${points.length} have a positive real part`}>
      <line x1="5" x2="215" y1="110" y2="110" /><line x1="110" x2="110" y1="5" y2="215" />
      {points.map(([x, y], i) => <circle key={i} cx={place(x)} cy={220 - place(y)} r="3.2" />)}
      <text x="214" y="106" text-anchor="end">Re {number(most, 2)}</text><text x="114" y="14">Im {number(most, 2)}</text>
    </svg>
  );
}

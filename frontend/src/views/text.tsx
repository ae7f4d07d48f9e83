// A text: where the head looks, what comes next, what each component and path gives to a logit.
import { useEffect, useMemo, useRef } from "preact/hooks";
import { paint, scaleOf } from "../colours.ts";
import { headOf, type Context } from "../context.ts";
import { Bars, clamp, Missing, number, percent, Token, useLater, type Bar } from "../parts.tsx";
import type { Run } from "../run.ts";
import { label } from "../tokens.ts";

const LISTED = 12;

export function TextView(context: Context) {
  const { payload, selection, select, run, problem, waiting } = context;
  const free = payload.kind !== "run";
  const prompts = payload.prompts.filter((text) => free || payload.runs.some((one) => one.text === text));
  return (
    <>
      <label class="choice">Text{" "}
        <select value={prompts.includes(selection.text) ? selection.text : ""} onChange={(event) => event.currentTarget.value && select({ text: event.currentTarget.value, position: 9999, target: null })}>
          <option value="">{free ? "your own, typed below" : "choose a prompt"}</option>
          {prompts.map((text, i) => <option key={i} value={text}>{text.length > 60 ? `${text.slice(0, 60)}…` : text}</option>)}
        </select>
      </label>
      {free && (
        <textarea aria-label="Text to run" rows={2} spellcheck={false} value={selection.text}
          onInput={(event) => select({ text: event.currentTarget.value, position: 99999, target: null })} />
      )}
      <p role="status" class="note">{waiting ? "The kernel is computing…" : problem}</p>
      {run && run.ids.length > 0 && <Tokens {...context} />}
      {run && run.ids.length > 0 && <Predictions {...context} />}
      {free && <Ablation {...context} />}
      <Missing notes={payload.missing["text"]} />
    </>
  );
}

export function at(context: Context): number {
  return clamp(context.selection.position, context.run?.ids.length ?? 1);
}

function Tokens(context: Context) {
  const { payload, selection, select, run, text } = context;
  const list = useRef<HTMLDivElement>(null);
  const moved = useRef(false);
  const chosen = clamp(context.chosen, run!.ids.length);
  const position = at(context); // the one pointed at, or the chosen one
  const { layer, head } = headOf(payload, selection.head);
  const full = run!.attention(layer, head, position);
  const from = selection.maskFirst ? 1 : 0;
  const rest = full ? full.slice(from).reduce((a, b) => a + b, 0) : 0;
  const share = (key: number): number | null => {
    if (!full || key > position || key < from) return null;
    return selection.maskFirst ? full[key]! / Math.max(rest, 1e-9) : full[key]!;
  };
  useEffect(() => {
    if (!moved.current) return;
    moved.current = false;
    list.current?.querySelector<HTMLElement>('[tabindex="0"]')?.focus();
  });
  const go = (next: number) => {
    moved.current = true;
    const place = clamp(next, run!.ids.length);
    select({ position: place, token: run!.ids[place]!, target: null });
  };
  const keys: { [key: string]: number } = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: run!.ids.length - 1 };
  const scale = scaleOf([0, ...run!.ids.map((_, key) => share(key))], false);
  return (
    <>
      <div ref={list} class="tokens" role="listbox" aria-label="Tokens, arrow keys move" aria-orientation="horizontal" onMouseLeave={() => context.point(null)}
        onKeyDown={(event) => { if (event.key in keys) { event.preventDefault(); go(keys[event.key]!); } }}>
        {run!.ids.map((id, i) => {
          const value = share(i);
          const loss = run!.loss(i);
          const words = `${i}: ${label(text(id))}${value === null ? "" : `, attention ${number(value, 2)}`}${Number.isFinite(loss) ? `, loss ${number(loss, 2)} nats` : ""}`;
          return (
            <span key={i} role="option" aria-selected={i === chosen} tabIndex={i === chosen ? 0 : -1} title={words} aria-label={words}
              class={i > position ? "piece later" : "piece"} onClick={() => go(i)} onMouseEnter={() => context.point(i)}>
              <span class="word" style={value === null ? {} : paint(value, scale)}>{label(text(id))}</span>
              <span class="loss" aria-hidden="true"><span style={{ width: `${Math.min(100, (Number.isFinite(loss) ? loss : 0) * 10)}%` }} /></span>
            </span>
          );
        })}
      </div>
      <p class="note">
        Coloured: attention of {selection.head} from token {position} <Token text={text(run!.ids[position]!)} />, 0 to {number(scale.high, 2)}{full ? "" : " (not on this page)"}. Point at a token and all views follow; choose it to stay there. Bars under the tokens: loss, 10 nats wide; mean {run!.ids.length > 1 ? number(run!.meanLoss, 3) : "–"} nats a token over n = {Math.max(0, run!.ids.length - 1)} tokens, null (a uniform guess) {number(Math.log(payload.model.n_tokens), 2)}
        {context.whole ? `, ${number(context.whole.meanLoss, 3)} with all heads` : ""}.
        {run!.cut > 0 && ` ${run!.cut} tokens beyond the context of ${payload.model.n_ctx} are left out.`}
      </p>
      <label class="choice"><input type="checkbox" checked={selection.maskFirst} onChange={(event) => select({ maskFirst: event.currentTarget.checked })} /> leave the first position out of the colours{selection.maskFirst && full ? ` (it takes ${percent(full[0]!)})` : ""}</label>
    </>
  );
}

function Predictions(context: Context) {
  const { payload, selection, select, run, whole, text } = context;
  const position = at(context);
  const next = run!.next(position);
  const before = new Map(whole?.next(position).map((one) => [one.id, one.p]));
  const allowed = run!.targets(position);
  const target = selection.target ?? next[0]!.id;
  const real = run!.ids[position + 1];
  const asked = useLater(useMemo(() => ({ run: run!, position, target }), [run, position, target]));
  const apart = useMemo(() => <Apart {...context} {...asked} />, [asked, payload]); // slow: not at every key
  const bars: Bar[] = next.map((one) => ({
    key: one.id, value: one.p,
    name: <><Token text={text(one.id)} />{one.id === real && <small> really next</small>}</>,
    shown: percent(one.p) + (before.has(one.id) ? ` (${percent(before.get(one.id)!)})` : ""),
    selected: one.id === target,
    choose: allowed && !allowed.includes(one.id) ? undefined : () => select({ target: one.id }),
    title: `Take the logit of ${label(text(one.id))} apart`,
  }));
  return (
    <div class="columns">
      <section>
        <h3>Next token after <Token text={text(run!.ids[position]!)} /></h3>
        <Bars bars={bars} unit={`probability; null: ${percent(1 / payload.model.n_tokens)} for a uniform guess`} note={whole ? "In brackets: with all heads" : "Choose one to take its logit apart"} />
        {real !== undefined && allowed?.includes(real) !== false && (
          <button type="button" onClick={() => select({ target: real })}>Take the real next token <Token text={text(real)} /> apart</button>
        )}
      </section>
      {apart}
    </div>
  );
}

function Apart({ run, position, target, text, select }: Context & { run: Run; position: number; target: number }) {
  const taken = run.take(position, target, true);
  return (
    <>
      <section>
        <h3>Who gives <Token text={text(target)} /> its logit</h3>
        {taken ? <Terms select={select} terms={taken.components} logit={taken.logit} error={taken.error} what="components" />
          : <p class="note">{run.sharesNote || "Not on this page for this token."}</p>}
      </section>
      {taken && (
        <section>
          <h3>Paths from the input to this logit</h3>
          {taken.paths ? <Terms select={select} terms={taken.paths} logit={taken.logit} error={taken.error} what="paths" /> : <p class="note">{taken.pathsNote}</p>}
        </section>
      )}
    </>
  );
}

function Terms({ terms, logit, error, what, select }: {
  terms: { name: string; value: number }[]; logit: number; error: number; what: string; select: Context["select"];
}) {
  const sorted = [...terms].sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const rest = sorted.slice(LISTED);
  const bars: Bar[] = sorted.slice(0, LISTED).map((term) => {
    const last = /L\d+H\d+$/.exec(term.name)?.[0];
    return { key: term.name, name: term.name, value: term.value, shown: number(term.value, 2), choose: last ? () => select({ head: last }) : undefined };
  });
  if (rest.length) bars.push({ key: "rest", name: `${rest.length} others`, value: rest.reduce((sum, term) => sum + term.value, 0) });
  return (
    <Bars bars={bars} unit="logits above the mean over tokens; 0 for what does not matter"
      note={`All ${terms.length} ${what} add up to ${number(logit, 3)}, with an error of ${error.toExponential(0)}; attention and norm scales held as they are`} />
  );
}

function Ablation({ payload, selection, select, run, whole }: Context) {
  const { n_layers, n_heads } = payload.model;
  if (!n_layers) return null;
  const toggle = (name: string) => select({
    ablated: selection.ablated.includes(name) ? selection.ablated.filter((one) => one !== name) : [...selection.ablated, name],
  });
  return (
    <details open={n_layers * n_heads <= 16}>
      <summary>Take heads away ({selection.ablated.length ? selection.ablated.join(", ") : "none"})</summary>
      <div class="scroll"><div class="toggles">
        {Array.from({ length: n_layers }, (_, l) => (
          <div key={l}>{Array.from({ length: n_heads }, (_, h) => {
            const name = `L${l}H${h}`;
            return <button key={h} type="button" aria-pressed={selection.ablated.includes(name)} onClick={() => toggle(name)}>{name}</button>;
          })}</div>
        ))}
      </div></div>
      <p class="note">What the head gathers is replaced by its mean over all positions of {String(payload.made["text"])}.
        {selection.ablated.length > 0 && run && whole && ` Loss ${number(run.meanLoss, 3)} nats a token, ${number(whole.meanLoss, 3)} with all heads.`}
        {selection.ablated.length > 0 && <> <button type="button" class="link" onClick={() => select({ ablated: [] })}>Put all back</button></>}</p>
    </details>
  );
}

// The four views around one selection.
import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { unpack } from "./arrays.ts";
import { words, type Context } from "./context.ts";
import { Engine } from "./engine.ts";
import { number } from "./parts.tsx";
import type { PackedRun, Payload } from "./payload.ts";
import { liveRun, storedRun, type Run } from "./run.ts";
import { fromHash, type Selection } from "./selection.ts";
import { TextTokens } from "./tokens.ts";
import { HeadView } from "./views/head.tsx";
import { LensView } from "./views/lens.tsx";
import { MapView, strength } from "./views/map.tsx";
import { TextView } from "./views/text.tsx";

/** Asks the notebook's kernel to run a text. */
export type Kernel = (text: string, ablated: string[]) => Promise<PackedRun & { vocabulary: { [id: string]: string } }>;

interface Live { engine: Engine; spare: Engine; tokens: TextTokens }

function start(payload: Payload, live: Live | null): Selection {
  const best = [...payload.heads].sort((a, b) => strength(b, "induction") - strength(a, "induction"))[0];
  const text = payload.runs[0]?.text ?? payload.prompts[0] ?? "";
  const run = live ? liveRun(payload, live.engine, live.tokens, text, []) : payload.runs[0] ? storedRun(payload, payload.runs[0]) : null;
  const ids = run?.ids ?? payload.first_ids;
  const position = continued(ids, run);
  return {
    head: String(best?.["head"] ?? "L0H0"), token: ids[position] ?? 0, position,
    target: null, score: "prefix_matching", text, ablated: [], distance: 1,
    lens: "linear", maskFirst: false,
  };
}

/** Of the tokens that stood before with the same successor, the one whose successor gained most: an induction head at work. */
function continued(ids: number[], run: Run | null): number {
  let best = Math.max(0, ids.length - 1), most = -Infinity;
  for (let p = ids.length - 2; p > 0; p--) {
    const q = ids.findIndex((id, i) => i > 0 && i < p && id === ids[p] && ids[i + 1] === ids[p + 1]);
    const gain = q < 0 ? -Infinity : run ? run.loss(q + 1) - run.loss(p + 1) : 0;
    if (gain > most) [best, most] = [p, gain];
  }
  return best;
}

interface Check { what: string; gap: number; allowed: number }

/** Largest difference from the logits that Python stored. */
function selfCheck(payload: Payload, engine: Engine): Check | null {
  if (!payload.sentinel) return null;
  const { ids, logits } = payload.sentinel;
  const wanted = unpack(logits);
  const [count, vocab] = wanted.shape as [number, number];
  const rows = engine.run(ids);
  let most = 0;
  wanted.data.forEach((value, i) => {
    const row = rows[ids.length - count + Math.floor(i / vocab)]!;
    const gap = Math.abs(row.logits[i % vocab]! - value);
    most = gap <= most ? most : gap; // NaN comes through
  });
  return { what: "from Python's logits", gap: most, allowed: payload.tolerance };
}

/** Of a page that only shows: its components of each logit, added up, against the logit itself. */
function storedCheck(payload: Payload): Check | null {
  let worst: Check | null = null;
  for (const { shares } of payload.runs) {
    if (!shares) continue;
    const values = unpack(shares.values).data, width = shares.components.length;
    unpack(shares.logits).data.forEach((logit, i) => {
      let sum = 0, size = 0;
      for (const value of values.subarray(i * width, (i + 1) * width)) {
        sum += value;
        size += Math.abs(value);
      }
      const gap = Math.abs(sum - logit), allowed = size / 2048 + shares.max_error + 1e-4; // half precision rounds by 1/2048
      if (!worst || !(gap / allowed <= worst.gap / worst.allowed)) worst = { what: "of stored components, added up here, from Python's logits", gap, allowed };
    });
  }
  return worst;
}

export function App({ payload: given, hash, onSelect, kernel }: {
  payload: Payload; hash: string; onSelect: (selection: Selection) => void; kernel: Kernel | null;
}) {
  const [payload, setPayload] = useState(given);
  const live = useMemo<Live | null>(() => given.arrays && given.tokenizer
    ? { engine: new Engine(given), spare: new Engine(given), tokens: new TextTokens(given.tokenizer, given.tokenizer_config ?? {}) } : null, [given]);
  const check = useMemo(() => (live ? selfCheck(given, live.engine) : storedCheck(given)), [live]);
  const [selection, setSelection] = useState(() => fromHash(hash, start(given, live)));
  const [answer, setAnswer] = useState<{ run: Run | null; whole: Run | null; waiting: boolean; problem: string }>(
    { run: null, whole: null, waiting: false, problem: "" });
  const [pointed, point] = useState<number | null>(null);
  const select = useCallback((change: Partial<Selection>) => { point(null); setSelection((old) => ({ ...old, ...change })); }, []);
  useEffect(() => onSelect(selection), [selection]);
  useEffect(() => setSelection((old) => fromHash(hash, old)), [hash]);

  const stored = useMemo(() => {
    const found = payload.runs.find((one) => one.text === selection.text);
    return found ? storedRun(payload, found) : null;
  }, [payload, selection.text]);
  const liveAnswer = useMemo(() => {
    if (!live) return null;
    const { text, ablated } = selection;
    return {
      run: liveRun(given, live.engine, live.tokens, text, ablated),
      whole: ablated.length ? liveRun(given, live.spare, live.tokens, text, []) : null, waiting: false, problem: "",
    };
  }, [live, selection.text, selection.ablated]);
  useKernel(kernel, live !== null, selection, setPayload, setAnswer);
  const now = liveAnswer ?? (kernel ? answer : { run: stored, whole: null, waiting: false, problem: stored ? "" : "Choose a prompt." });
  const seen = pointed !== null && now.run && pointed < now.run.ids.length
    ? { ...selection, position: pointed, token: now.run.ids[pointed]!, target: null } : selection;
  const context: Context = {
    payload, engine: live?.engine ?? null, selection: seen, select, point, chosen: selection.position, ...now, text: words(payload),
  };
  // A key typed in the text changes neither of these: what does not change is not drawn again.
  const map = useMemo(() => <MapView {...context} />, [payload, seen.head, seen.score]);
  const head = useMemo(() => <HeadView {...context} />, [payload, seen.head, seen.token, seen.distance]);
  return (
    <div class="explorer">
      <Header payload={payload} check={check} />
      <main>
        <div class="column">
          <View id="map" title="Model map">{map}</View>
          <View id="text" title="Text"><TextView {...context} /></View>
        </div>
        <div class="column">
          <View id="head" title="Head">{head}</View>
          <View id="lens" title="Lens"><LensView {...context} /></View>
        </div>
      </main>
      <footer>lens_linear {payload.version}. Nothing on this page is loaded from outside. The address holds the selection: copy it to share this sight.</footer>
    </div>
  );
}

function useKernel(kernel: Kernel | null, live: boolean, selection: Selection,
  setPayload: (change: (old: Payload) => Payload) => void, setAnswer: (answer: { run: Run | null; whole: Run | null; waiting: boolean; problem: string }) => void) {
  const latest = useRef(0);
  useEffect(() => {
    if (!kernel || live) return undefined;
    const mine = ++latest.current;
    const timer = setTimeout(async () => {
      setAnswer({ run: null, whole: null, waiting: true, problem: "" });
      try {
        const asked = [kernel(selection.text, selection.ablated), ...(selection.ablated.length ? [kernel(selection.text, [])] : [])];
        const found = await Promise.all(asked);
        if (mine !== latest.current) return;
        setPayload((old) => {
          const known = Object.assign({}, old.vocabulary, ...found.map((one) => one.vocabulary));
          const next = { ...old, vocabulary: known };
          setAnswer({ run: storedRun(next, found[0]!), whole: found[1] ? storedRun(next, found[1]) : null, waiting: false, problem: "" });
          return next;
        });
      } catch (error) {
        if (mine === latest.current) setAnswer({ run: null, whole: null, waiting: false, problem: String(error instanceof Error ? error.message : error) });
      }
    }, 400);
    return () => clearTimeout(timer);
  }, [kernel, live, selection.text, selection.ablated]);
}

function View({ id, title, children }: { id: string; title: string; children: preact.ComponentChildren }) {
  return <section class="view" id={id} aria-labelledby={`${id}-title`}><h2 id={`${id}-title`}>{title}</h2>{children}</section>;
}

function Header({ payload, check }: { payload: Payload; check: Check | null }) {
  const m = payload.model;
  const live = payload.arrays !== null;
  const good = check !== null && check.gap <= check.allowed;
  const jump = (event: MouseEvent) => {
    const link = event.currentTarget as HTMLAnchorElement;
    event.preventDefault(); // the address belongs to the selection
    const target = (link.getRootNode() as ShadowRoot).querySelector<HTMLElement>(link.getAttribute("href")!);
    target?.scrollIntoView();
    target?.querySelector<HTMLElement>("button, select, input, textarea, [tabindex='0'], summary")?.focus({ preventScroll: true });
  };
  return (
    <header>
      <h1>{m.name}</h1>
      <p class="lead">
        {m.n_layers} layers × {m.n_heads} heads{m.n_ffn ? `, ${m.n_ffn} with MLPs` : ", attention only"}; width {m.d_model}, vocabulary{" "}
        {m.d_vocab.toLocaleString("en")}, context {m.n_ctx.toLocaleString("en")}, {m.parameters.toLocaleString("en")} parameters.
      </p>
      <p class={check === null ? "check" : good ? "check good" : "check bad"} role="status">
        {check === null
          ? "Every number was computed by Python; this page only shows them."
          : good
            ? `Self-check passed: the largest difference ${check.what} is ${check.gap.toExponential(1)} (allowed ${+check.allowed.toPrecision(2)}).`
            : `Self-check FAILED: the largest difference ${check.what} is ${number(check.gap, 4)} (allowed ${+check.allowed.toPrecision(2)}). Do not trust this page in this browser.`}
        {live ? "" : check && " Every number was computed by Python; this page only shows them."}
      </p>
      <nav aria-label="Views">{[["map", "Model map"], ["text", "Text"], ["head", "Head"], ["lens", "Lens"]].map(([id, text]) => (
        <a key={id} href={`#${id}`} onClick={jump}>{text}</a>))}</nav>
    </header>
  );
}

// The model map: every head coloured by one score, and how linear every layer is.
import { useMemo, useRef, useState } from "preact/hooks";
import { unpack, unpackInts } from "../arrays.ts";
import { scaleOf } from "../colours.ts";
import { headOf, type Context } from "../context.ts";
import { Choice, Grid, Legend, Missing, number, percent } from "../parts.tsx";
import type { HeadRow, Linearity, Payload, Score } from "../payload.ts";

const OURS: { [name: string]: Score } = {
  prefix_matching: { words: "prefix matching (induction)", unit: "attention to the token after the previous occurrence, 0 to 1", signed: false, control: "positional_control", controlWords: "same offset, no repeat", se: "prefix_se" },
  prev_token: { words: "previous token", unit: "attention to the token before, 0 to 1", signed: false, control: "prev_control", controlWords: "mean of the tokens beside it" },
  duplicate: { words: "duplicate token", unit: "attention to the previous occurrence, 0 to 1", signed: false, control: "duplicate_control", controlWords: "same offset, no repeat" },
  first_token: { words: "first token", unit: "attention to the first position, 0 to 1", signed: false, control: "first_control", controlWords: "equal attention to all" },
  copying: { words: "copying (OV eigenvalues)", unit: "Σ Re λ / Σ |λ|, −1 to 1", signed: true, control: 0, controlWords: "no relation" },
  target_logit: { words: "raises the copied token", unit: "logits above its mean effect on all tokens", signed: true, control: 0, controlWords: "no relation", se: "target_logit_se" },
  lost: { words: "loss of copying without it", unit: "nats a token that in-context copying loses", signed: true, control: 0, controlWords: "a head that copying does not need" },
};
interface Verdict { letter: string; words: string; meaning: string }
const VERDICTS: { [verdict: string]: Verdict } = {
  induction: { letter: "I", words: "induction", meaning: "From a token that stood before, it looks at what followed it then, and raises that." },
  "previous-token": { letter: "P", words: "previous token", meaning: "It looks at the token before." },
  "duplicate-token": { letter: "D", words: "duplicate token", meaning: "It looks at where the same token stood before." },
  positional: { letter: "O", words: "fixed offset", meaning: "It looks a fixed number of tokens back, whatever stands there." },
  undecided: { letter: "?", words: "undecided", meaning: "" },
};
const UNNAMED: Verdict = { letter: "", words: "none", meaning: "" };
const LISTED = 8; // named heads of a verdict, strongest first
export const KINDS = ["Q", "K", "V"];
const NAMES: { [kind: string]: string } = { Q: "queries (Q)", K: "keys (K)", V: "values (V)" };

export function MapView({ payload, selection, select }: Context) {
  const { n_layers, n_heads } = payload.model;
  const at = headOf(payload, selection.head);
  const composition = useComposition(payload);
  const scores = { ...OURS, ...payload.added_scores };
  const names = Object.keys(scores).filter((name) => payload.heads[0] && name in payload.heads[0]);
  const options: [string, string][] = names.map((name) => [name, scores[name]!.words]);
  if (composition) for (const kind of KINDS) options.push([`compose_${kind}`, `${kind}-composition with ${selection.head}`]);
  const chosen = options.some(([name]) => name === selection.score) ? selection.score : options[0]?.[0] ?? "";
  const kind = chosen.startsWith("compose_") ? KINDS.indexOf(chosen.slice(-1)) : -1;
  const byPlace = useMemo(() => new Map(payload.heads.map((row) => [`${row["layer"]},${row["index"]}`, row])), [payload]);
  const value = (layer: number, head: number): number | null => {
    if (kind >= 0) return composition?.pair(kind, at, { layer, head }) ?? null;
    const found = byPlace.get(`${layer},${head}`)?.[chosen];
    return typeof found === "number" ? found : null;
  };
  if (!n_layers) return <p>The model has no layers: the next token depends on the last token alone, through W_E W_U.</p>;
  const all = Array.from({ length: n_layers * n_heads }, (_, i) => value(Math.floor(i / n_heads), i % n_heads));
  const scale = scaleOf(all, kind < 0 && (scores[chosen]?.signed ?? false));
  const dense = n_heads > 8;
  const partners = composition?.strongest(at) ?? [];
  const role = (name: string) => partners.flatMap((one) => (one.name !== name ? [] : one.reads ? `read by ${selection.head} (${one.kind})` : `reads ${selection.head} (${one.kind})`)).join(", ");
  const unit = kind >= 0
    ? `times the mean of ${composition!.n_random} random pairs; 1 for unrelated heads, ${number(composition!.best[kind]!, 2)} for the best random pair`
    : scores[chosen] ? `${scores[chosen]!.unit}; null for ${selection.head}: ${nullOf(scores[chosen]!, at.row)} (${scores[chosen]!.controlWords ?? "not given"})` : "";
  return (
    <>
      <p>Every cell is a head. Choose one, by a click or the arrow keys, and the other views show it.</p>
      <Named {...{ payload, selection, select }} />
      <Choice words="Colour heads by" value={chosen} options={options} choose={(score) => select({ score })} />
      <Grid name="Heads by layer" dense={dense} scale={scale}
        rows={Array.from({ length: n_layers }, (_, l) => (dense ? `L${l}` : `Layer ${l}`))}
        columns={Array.from({ length: n_heads }, (_, h) => `H${h}`)}
        selected={{ row: at.layer, column: at.head }}
        choose={(layer, head) => select({ head: `L${layer}H${head}` })}
        cell={(layer, head) => {
          const name = `L${layer}H${head}`;
          const verdict = verdictOf(byPlace.get(`${layer},${head}`));
          const shown = number(value(layer, head), 2);
          const partner = role(name);
          return {
            value: value(layer, head), title: `${name}: ${shown}, verdict ${verdict.words}${partner && `, ${partner}`}`, marked: partner !== "",
            text: dense ? verdict.letter : <><span class="big">{shown}</span>{[verdict.letter && verdict.words, partner].filter(Boolean).map((words) => <span class="verdict">{words}</span>)}</>,
          };
        }} />
      <Legend scale={scale} words={unit} />
      {dense && <p class="note">Letters are verdicts: {Object.values(VERDICTS).map((one) => `${one.letter} ${one.words}`).join(", ")}.{partners.length > 0 && ` Framed with dashes: what ${selection.head} reads most, and what reads it most.`}</p>}
      {at.row && <HeadFacts row={at.row} rows={byPlace} scores={scores} partners={partners} select={select} />}
      <p class="note">{payload.heads_note}. ± is one standard error over the rows.</p>
      <h3>How linear the layers are</h3>
      <LinearityTable parts={payload.linearity} selected={at.layer} />
      <Missing notes={payload.missing["map"]} />
    </>
  );
}

function nullOf(score: Score, row: HeadRow | undefined): string {
  const { control } = score;
  return number(typeof control === "string" ? row?.[control] as number | null | undefined : control, 2);
}

function verdictOf(row: HeadRow | undefined): Verdict {
  return VERDICTS[String(row?.["verdict"])] ?? UNNAMED;
}

/** The heads that have a name, as links: the strongest stand first. */
function Named({ payload, selection, select }: Pick<Context, "payload" | "selection" | "select">) {
  const lists = Object.entries(VERDICTS).flatMap(([key, { words }]) => {
    const heads = payload.heads.filter((row) => row["verdict"] === key).sort((a, b) => strength(b, key) - strength(a, key));
    return heads.length && key !== "undecided" ? [{ words, heads }] : [];
  });
  if (!lists.length) return null;
  return (
    <ul class="named">{lists.map(({ words, heads }) => (
      <li key={words}>{words[0]!.toUpperCase() + words.slice(1)} heads ({heads.length}):{" "}
        {heads.slice(0, LISTED).map((row) => {
          const name = String(row["head"]);
          return <><button key={name} type="button" class="link" aria-pressed={name === selection.head} onClick={() => select({ head: name })}>{name}</button>{" "}</>;
        })}
        {heads.length > LISTED && "…"}
      </li>))}
    </ul>
  );
}

const STRENGTH: { [verdict: string]: [string, string] } = {
  induction: ["prefix_matching", "positional_control"], "previous-token": ["prev_token", "prev_control"], "duplicate-token": ["duplicate", "duplicate_control"],
};

/** What a verdict speaks of, above its null. */
export function strength(row: HeadRow, verdict: string): number {
  const [score, control] = STRENGTH[verdict] ?? ["", ""];
  return Number(row[score] ?? 0) - Number(row[control] ?? 0);
}

function HeadFacts({ row, rows, scores, partners, select }: {
  row: HeadRow; rows: Map<string, HeadRow>; scores: { [name: string]: Score }; partners: Partner[]; select: Context["select"];
}) {
  const title = useRef<HTMLHeadingElement>(null);
  const go = (head: string) => { // the link goes with its head, so the keyboard's place is kept above it
    select({ head });
    title.current?.focus({ preventScroll: true });
  };
  const verdict = verdictOf(row);
  const named = (one: Partner) => {
    const { letter, words } = verdictOf(rows.get(`${one.layer},${one.head}`));
    return letter && words !== "undecided" ? ` (${words} head)` : "";
  };
  return (
    <div class="facts">
      <h3 ref={title} tabIndex={-1}>{String(row["head"])}: {verdict === UNNAMED ? "no verdict" : verdict.letter === "?" ? verdict.words : `${verdict.words} head`}</h3>
      <p>{verdict.meaning} {row["reason"] && `Why: ${row["reason"]}.`}</p>
      {partners.map((one) => (
        <p key={one.words} class="partner">{one.words} <button type="button" class="link" onClick={() => go(one.name)}>{one.name}</button>{named(one)} through {one.reads ? "its" : "that head's"} {NAMES[one.kind]}: composition {number(one.score, 2)}, {number(one.ratio, 1)} times random</p>
      ))}
      <div class="scroll" tabIndex={0} role="region" aria-label="Scores of the head"><table class="plain facts-table">
        <thead><tr><th scope="col">score</th><th scope="col">value</th><th scope="col">null</th></tr></thead>
        <tbody>{Object.entries(scores).filter(([name]) => name in row).map(([name, score]) => (
          <tr key={name}>
            <th scope="row">{score.words}<small>{score.unit}</small></th>
            <td>{number(row[name] as number | null, 2)}{score.se && typeof row[score.se] === "number" && <small>± {number(row[score.se] as number, 2)}</small>}</td>
            <td>{nullOf(score, row)}<small>{score.controlWords}</small></td>
          </tr>))}
        </tbody>
      </table></div>
    </div>
  );
}

const COLUMNS: [string, string][] = [
  ["block_r2", "block"], ["block_r2_no_residual", "without residual"], ["ffn_r2", "FFN"], ["attn_r2", "attention"],
];

function LinearityTable({ parts, selected }: { parts: Linearity[]; selected: number }) {
  const [skip, setSkip] = useState(0);
  const part = parts.find((one) => one.skip === skip) ?? parts[0];
  if (!part) return <p class="note">Not measured.</p>;
  const shown = COLUMNS.filter(([name]) => part.rows.some((row) => typeof row[name] === "number"));
  return (
    <>
      <Choice words="First position" value={String(part.skip)} choose={(value) => setSkip(Number(value))}
        options={parts.map((one) => [String(one.skip), one.skip ? "left out" : "counted"])} />
      <div class="scroll" tabIndex={0} role="region" aria-label="How linear the layers are">
        <table class="plain">
          <thead><tr><th scope="col">Layer</th>{shown.map(([name, text]) => <th key={name} scope="col">{text}</th>)}<th scope="col">null</th>{!part.skip && <th scope="col">variance in the first position</th>}</tr></thead>
          <tbody>
            {part.rows.map((row, layer) => (
              <tr key={layer} class={layer === selected ? "here" : ""}>
                <th scope="row">{layer}</th>
                {shown.map(([name]) => (
                  <td key={name} title={`95 % interval ${number(row[`${name}_low`])} to ${number(row[`${name}_high`])}`}>
                    <span class="meter"><span style={{ width: `${Math.max(0, row[name] ?? 0) * 100}%` }} /></span>{number(row[name])}
                  </td>
                ))}
                <td>{number(row["null_r2"])}</td>
                {!part.skip && <td>{typeof row["first_share"] === "number" ? percent(row["first_share"]) : "–"}</td>}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p class="note">
        R² of the best affine map, held out: 1 is exactly linear, the null is no relation. Fitted on{" "}
        {part.n_fit.toLocaleString("en")} tokens, scored on {part.n_tokens.toLocaleString("en")} others.
      </p>
    </>
  );
}

type Place = { layer: number; head: number };
export interface Partner extends Place { words: string; name: string; kind: string; score: number; mean: number; ratio: number; above: boolean; reads: boolean }

export interface Composition {
  n_random: number;
  best: number[]; // of each kind, the ratio that the best of as many random pairs reaches
  partners: (of: Place) => Partner[]; // every head before and after, largest ratio to random first
  strongest: (of: Place) => Partner[]; // the one it reads most and the one that reads it most, above the best random pair
  pair: (kind: number, one: Place, other: Place) => number | null; // ratio, whichever stands below
}

export function useComposition(payload: Payload): Composition | null {
  return useMemo(() => {
    const packed = payload.composition;
    if (!packed) return null;
    const { n_layers, n_heads } = payload.model;
    const [scores, mean] = [packed.scores, packed.mean].map((one) => unpack(one).data);
    // Of large models the strongest pairs alone are kept, by their places in the whole.
    const kept = packed.places && new Map([...unpackInts(packed.places).data].map((place, i) => [place, i]));
    const score = (kind: number, writer: Place, reader: Place) => {
      const place = (((kind * n_layers + writer.layer) * n_heads + writer.head) * n_layers + reader.layer) * n_heads + reader.head;
      const at = kept ? kept.get(place) : place;
      if (at === undefined) return null;
      const ratio = mean![at]! > 0 ? scores![at]! / mean![at]! : 0;
      return { score: scores![at]!, mean: mean![at]!, ratio, above: ratio > packed.best_random[kind]! };
    };
    const partners = (of: Place): Partner[] => {
      const list: Partner[] = [];
      for (let kind = 0; kind < 3; kind++) {
        for (let layer = 0; layer < n_layers; layer++) {
          if (layer === of.layer) continue;
          const reads = layer < of.layer;
          for (let head = 0; head < n_heads; head++) {
            const other = { layer, head };
            const found = reads ? score(kind, other, of) : score(kind, of, other);
            if (found) list.push({ ...found, layer, head, kind: KINDS[kind]!, name: `L${layer}H${head}`, reads, words: reads ? "Reads most from" : "Is read most by" });
          }
        }
      }
      return list.sort((a, b) => b.ratio - a.ratio);
    };
    return {
      n_random: packed.n_random, best: packed.best_random, partners,
      strongest: (of) => {
        const list = partners(of).filter((one) => one.above);
        return [true, false].flatMap((reads) => list.find((one) => one.reads === reads) ?? []);
      },
      pair(kind, one, other) {
        if (one.layer === other.layer) return null;
        return (one.layer < other.layer ? score(kind, one, other) : score(kind, other, one))?.ratio ?? null;
      },
    };
  }, [payload]);
}

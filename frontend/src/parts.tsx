// Small pieces that several views share.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { gradient, paint, type Scale } from "./colours.ts";
import { label } from "./tokens.ts";

export function Token({ text }: { text: string }) {
  return <code class="token">{label(text)}</code>;
}

export function number(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1").replace("-", "−");
}

export function percent(p: number): string {
  return p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %";
}

export interface Bar {
  key: string | number;
  name: ComponentChildren;
  value: number;
  shown?: string;
  choose?: (() => void) | undefined;
  selected?: boolean;
  title?: string;
}

/** A list of signed bars on one scale; entries that lead somewhere are buttons. */
export function Bars({ bars, unit, note }: { bars: Bar[]; unit: string; note?: string }) {
  const most = Math.max(...bars.map((bar) => Math.abs(bar.value)), 1e-9);
  const signed = bars.some((bar) => bar.value < 0) && bars.some((bar) => bar.value > 0);
  return (
    <div class="bars">
      <ol>
        {bars.map((bar) => {
          const share = (Math.abs(bar.value) / most) * (signed ? 50 : 100);
          const left = !signed ? 0 : bar.value < 0 ? 50 - share : 50;
          const inner = (
            <>
              <span class="name">{bar.name}</span>
              <span class="track">
                <span class={bar.value < 0 ? "fill below" : "fill"} style={{ left: `${left}%`, width: `${share}%` }} />
              </span>
              <span class="value">{bar.shown ?? number(bar.value)}</span>
            </>
          );
          return (
            <li key={bar.key}>
              {bar.choose ? (
                <button class="row" type="button" aria-pressed={bar.selected ?? false} onClick={bar.choose} title={bar.title}>{inner}</button>
              ) : (
                <div class="row" title={bar.title}>{inner}</div>
              )}
            </li>
          );
        })}
      </ol>
      <p class="note">{unit}{note ? `. ${note}` : ""}</p>
    </div>
  );
}

export function Legend({ scale, words }: { scale: Scale; words: string }) {
  return (
    <p class="legend">
      <span>{number(scale.low, 2)}</span>
      <span class="ramp" style={{ background: gradient(scale.signed) }} />
      <span>{number(scale.high, 2)}</span> <span>{words}</span>
    </p>
  );
}

export interface Cell {
  value: number | null;
  text?: ComponentChildren;
  title: string;
  marked?: boolean;
}

interface GridProps {
  name: string;
  rows: string[];
  columns: ComponentChildren[];
  cell: (row: number, column: number) => Cell;
  scale: Scale;
  selected: { row: number; column: number };
  choose: (row: number, column: number) => void;
  dense?: boolean;
}

/** A coloured grid: one tab stop, arrow keys move the selection. */
export function Grid({ name, rows, columns, cell, scale, selected, choose, dense }: GridProps) {
  const table = useRef<HTMLTableElement>(null);
  const moved = useRef(false);
  useEffect(() => {
    if (!moved.current) return;
    moved.current = false;
    table.current?.querySelector<HTMLElement>('[tabindex="0"]')?.focus();
  });
  useEffect(() => { // a selection made elsewhere comes into sight
    const cell = table.current?.querySelector<HTMLElement>('[aria-selected="true"]'), frame = table.current?.parentElement;
    if (!cell || !frame) return;
    const one = cell.getBoundingClientRect(), all = frame.getBoundingClientRect();
    if (one.left < all.left + all.width / 4 || one.right > all.right) frame.scrollLeft += one.left - all.left - all.width / 2;
  }, [selected.column, columns.length]);
  const at = { row: Math.min(selected.row, rows.length - 1), column: Math.min(selected.column, columns.length - 1) };
  const onKeyDown = (event: KeyboardEvent) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const column = event.key === "Home" ? 0 : event.key === "End" ? columns.length - 1 : at.column + (step?.[1] ?? 0);
    if (!step && event.key !== "Home" && event.key !== "End") return;
    event.preventDefault();
    moved.current = true;
    choose(clamp(at.row + (step?.[0] ?? 0), rows.length), clamp(column, columns.length));
  };
  return (
    <div class="scroll">
      <table ref={table} class={dense ? "grid dense" : "grid"} role="grid" aria-label={name} onKeyDown={onKeyDown}>
        <thead>
          <tr><td />{columns.map((column, c) => <th key={c} scope="col">{column}</th>)}</tr>
        </thead>
        <tbody>
          {rows.map((row, r) => (
            <tr key={r}>
              <th scope="row">{row}</th>
              {columns.map((_, c) => {
                const one = cell(r, c);
                const here = r === at.row && c === at.column;
                return (
                  <td key={c} role="gridcell" class={one.marked ? "marked" : ""} style={paint(one.value, scale)} title={one.title}
                    tabIndex={here ? 0 : -1} aria-selected={here} onClick={() => choose(r, c)}>
                    {one.text}
                  </td>
                );
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export function clamp(value: number, size: number): number {
  return Math.max(0, Math.min(size - 1, value));
}

export function Missing({ notes }: { notes: string[] | undefined }) {
  if (!notes?.length) return null;
  return <div class="missing"><strong>Not on this page</strong>{notes.map((note) => <p key={note}>{note}</p>)}</div>;
}

export function Choice({ words, value, options, choose }: {
  words: string; value: string; options: [string, string][]; choose: (value: string) => void;
}) {
  return (
    <label class="choice">{words}{" "}
      <select value={value} onChange={(event) => choose(event.currentTarget.value)}>
        {options.map(([key, text]) => <option key={key} value={key}>{text}</option>)}
      </select>
    </label>
  );
}

/** Milliseconds without a change after which what is slow is computed: longer than between two keys. */
const SETTLED = 250;

/** The value as it was when it last stood still for a while: for what is too slow to follow every key. */
export function useLater<T>(value: T, wait = SETTLED): T {
  const [later, setLater] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setLater(value), wait);
    return () => clearTimeout(timer);
  }, [value, wait]);
  return later;
}

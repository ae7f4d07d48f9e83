// Text to token ids as Python's tokenizer does it, and token texts as readable labels.
import { Tokenizer } from "@huggingface/tokenizers";
import type { Payload } from "./payload.ts";

// JavaScript's \s and Rust's differ at U+0085 and U+FEFF; \s inside the tokenizer's own patterns is mended
// by writing Unicode's White_Space out.
const WHITE = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";

function mendSpaces(source: string): string {
  let inClass = false;
  let out = "";
  for (let i = 0; i < source.length; i++) {
    const pair = source.slice(i, i + 2);
    if (pair === "\\s") out += inClass ? WHITE : `[${WHITE}]`;
    else if (pair === "\\S") out += inClass ? pair : `[^${WHITE}]`;
    else if (source[i] === "\\") out += pair;
    else {
      if (source[i] === "[") inClass = true;
      if (source[i] === "]") inClass = false;
      out += source[i];
      continue;
    }
    i++;
  }
  return out;
}

const BYTE_LEVEL =
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/** Byte-level pre-tokenizers bring their pattern with them: make it a step of its own, mended. */
function mend(part: unknown): unknown {
  if (Array.isArray(part)) return part.map(mend);
  if (part === null || typeof part !== "object") return part;
  const one = Object.fromEntries(Object.entries(part).map(([name, value]) => [name, mend(value)]));
  if (one["type"] === "ByteLevel" && one["use_regex"] !== false && "trim_offsets" in one) {
    const split = {
      type: "Split", pattern: { Regex: mendSpaces(BYTE_LEVEL) }, behavior: "Isolated", invert: false,
    };
    return { type: "Sequence", pretokenizers: [split, { ...one, use_regex: false }] };
  }
  if (one["type"] === "Digits") {
    // Rust's digits are all of Unicode's numbers, the library's \d only 0 to 9.
    const Regex = one["individual_digits"] ? "\\p{N}" : "\\p{N}+";
    return { type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false };
  }
  if (typeof one["Regex"] === "string") return { ...one, Regex: mendSpaces(one["Regex"]) };
  return one;
}

export class TextTokens {
  private readonly tokenizer: Tokenizer;

  constructor(tokenizer: object, config: object) {
    const parts = tokenizer as { pre_tokenizer?: unknown };
    this.tokenizer = new Tokenizer({ ...parts, pre_tokenizer: mend(parts.pre_tokenizer) } as object, config);
  }

  encode(text: string): number[] {
    return this.tokenizer.encode(text, { add_special_tokens: false }).ids;
  }
}

// Default ignorables are fillers, selectors and joiners; the others here have no ink by their names.
const INVISIBLE =
  /[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\u2800\u2D7F\u{1107F}\u{16FE4}\u{1BC9D}\u{1D159}]/u;
const MARK = /\p{M}/u;
const NAMED: { [character: string]: string } = { " ": "␣", "\n": "↵", "\t": "⇥", "▁": "␣" };

/** A token as printable text on one line; never empty. The same signs as in the figures. */
export function label(text: string): string {
  if (text === "") return "∅";
  let out = "";
  let based = false; // a combining mark stays on a character that is shown as itself
  for (const character of text) {
    const code = character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0");
    const hidden = INVISIBLE.test(character) || (MARK.test(character) && !based);
    const shown: string = NAMED[character] ?? (hidden ? `⟨${code}⟩` : character);
    based = shown === character;
    out += shown;
  }
  return out;
}

export function tokenText(payload: Payload, id: number): string {
  const words = payload.vocabulary;
  return (Array.isArray(words) ? words[id] : words[String(id)]) ?? `#${id}`;
}

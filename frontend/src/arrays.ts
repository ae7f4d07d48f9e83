// Base64 to typed arrays. Half precision is widened here: browsers compute in float32.
import type { Packed } from "./payload.ts";

export type Numbers = Float32Array | Int32Array;

export interface Unpacked<T extends Numbers = Float32Array> {
  shape: number[];
  data: T;
}

function bytes(text: string): Uint8Array {
  const binary = atob(text);
  const out = new Uint8Array(binary.length); // a fresh buffer is aligned to any word
  for (let i = 0; i < binary.length; i++) out[i] = binary.charCodeAt(i);
  return out;
}

let halves: Float32Array | null = null;

function halfTable(): Float32Array {
  if (halves) return halves;
  halves = new Float32Array(65536);
  for (let h = 0; h < 65536; h++) {
    const sign = h & 0x8000 ? -1 : 1;
    const exponent = (h >> 10) & 31;
    const fraction = h & 1023;
    if (exponent === 0) halves[h] = sign * fraction * 2 ** -24;
    else if (exponent === 31) halves[h] = fraction ? NaN : sign * Infinity;
    else halves[h] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return halves;
}

export function unpackInts(packed: Packed): Unpacked<Int32Array> {
  return { shape: packed.shape, data: new Int32Array(bytes(packed.data).buffer) };
}

export function unpack(packed: Packed): Unpacked {
  const raw = bytes(packed.data);
  if (packed.dtype === "float32") return { shape: packed.shape, data: new Float32Array(raw.buffer) };
  if (packed.dtype === "uint8") return { shape: packed.shape, data: Float32Array.from(raw, (v) => v / 255) };
  const words = new Uint16Array(raw.buffer);
  const table = halfTable();
  const data = new Float32Array(words.length);
  for (let i = 0; i < words.length; i++) data[i] = table[words[i]!]!;
  return { shape: packed.shape, data };
}

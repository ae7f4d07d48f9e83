// Small dense algebra on row-major Float32Arrays.

/** out += x @ w for one row x [rows] and w [rows, columns]. */
export function addRowTimes(out: Float32Array, x: Float32Array, w: Float32Array, at = 0): void {
  const columns = out.length;
  const rows = x.length;
  let i = 0;
  for (; i + 3 < rows; i += 4) {
    const a = x[i]!, b = x[i + 1]!, c = x[i + 2]!, d = x[i + 3]!;
    let p = at + i * columns;
    const q = p + columns, r = q + columns, s = r + columns;
    for (let j = 0; j < columns; j++, p++) {
      out[j]! += a * w[p]! + b * w[q + j]! + c * w[r + j]! + d * w[s + j]!;
    }
  }
  for (; i < rows; i++) {
    const a = x[i]!;
    const p = at + i * columns;
    for (let j = 0; j < columns; j++) out[j]! += a * w[p + j]!;
  }
}

/** out[i] = w[i, :] . y for w [rows, columns]: y @ wᵀ. */
export function timesTransposed(w: Float32Array, y: Float32Array, rows: number, at = 0): Float32Array {
  const out = new Float32Array(rows);
  const columns = y.length;
  for (let i = 0; i < rows; i++) {
    let sum = 0;
    const p = at + i * columns;
    for (let j = 0; j < columns; j++) sum += w[p + j]! * y[j]!;
    out[i] = sum;
  }
  return out;
}

export function dot(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

export function mean(a: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]!;
  return sum / a.length;
}

export function softmax(x: Float32Array): Float32Array {
  let high = -Infinity;
  for (const v of x) if (v > high) high = v;
  const out = new Float32Array(x.length);
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += out[i] = Math.exp(x[i]! - high);
  for (let i = 0; i < x.length; i++) out[i]! /= sum;
  return out;
}

export function logSumExp(x: Float32Array): number {
  let high = -Infinity;
  for (const v of x) if (v > high) high = v;
  let sum = 0;
  for (const v of x) sum += Math.exp(v - high);
  return high + Math.log(sum);
}

/** Indices of the k largest values, largest first; ties by index. */
export function topK(x: ArrayLike<number>, k: number, sign = 1): number[] {
  const best: number[] = [];
  for (let i = 0; i < x.length; i++) {
    const v = sign * x[i]!;
    if (best.length === k && v <= sign * x[best[k - 1]!]!) continue;
    let j = best.length;
    while (j > 0 && v > sign * x[best[j - 1]!]!) j--;
    best.splice(j, 0, i);
    if (best.length > k) best.pop();
  }
  return best;
}

export function normScale(x: Float32Array, kind: "none" | "layer" | "rms", eps: number): number {
  if (kind === "none") return 1;
  const m = kind === "layer" ? mean(x) : 0;
  let sum = 0;
  for (const v of x) sum += (v - m) * (v - m);
  return Math.sqrt(sum / x.length + eps);
}

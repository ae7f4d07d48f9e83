// The figures' colours: viridis for what has no sign, red to blue around zero, Okabe and Ito for categories.
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const RED_BLUE = [
  "#67001f", "#b2182b", "#d6604d", "#f4a582", "#fddbc7", "#f7f7f7", "#d1e5f0", "#92c5de", "#4393c3", "#2166ac", "#053061",
];
export const OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"];

type Colour = [number, number, number];

function parse(hex: string): Colour {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)) as Colour;
}

function between(scale: string[], share: number): Colour {
  const place = Math.min(Math.max(share, 0), 1) * (scale.length - 1);
  const low = Math.min(Math.floor(place), scale.length - 2);
  const a = parse(scale[low]!), b = parse(scale[low + 1]!);
  return a.map((v, i) => Math.round(v + (b[i]! - v) * (place - low))) as Colour;
}

export interface Scale {
  low: number;
  high: number;
  signed: boolean;
}

/** The data's own scale: symmetric around zero where values have both signs. */
export function scaleOf(values: (number | null)[], signed: boolean): Scale {
  const known = values.filter((v): v is number => v !== null && Number.isFinite(v));
  if (!known.length) return { low: 0, high: 1, signed };
  if (signed) {
    const most = Math.max(...known.map(Math.abs), 1e-9);
    return { low: -most, high: most, signed };
  }
  const low = Math.min(...known), high = Math.max(...known);
  return { low, high: high > low ? high : low + 1e-9, signed };
}

export function paint(value: number | null | undefined, scale: Scale): { background: string; color: string } {
  if (value === null || value === undefined || !Number.isFinite(value)) return { background: "transparent", color: "inherit" };
  const share = (value - scale.low) / (scale.high - scale.low);
  const [r, g, b] = between(scale.signed ? RED_BLUE : VIRIDIS, share);
  return { background: `rgb(${r},${g},${b})`, color: luminance(r, g, b) > 0.18 ? "#000" : "#fff" };
}

function luminance(...parts: number[]): number {
  const [r, g, b] = parts.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r! + 0.7152 * g! + 0.0722 * b!;
}

export function gradient(signed: boolean): string {
  return `linear-gradient(90deg,${(signed ? RED_BLUE : VIRIDIS).join(",")})`;
}

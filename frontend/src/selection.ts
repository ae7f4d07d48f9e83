// What is selected stands in the page's address, so that a link opens the same sight.

export interface Selection {
  head: string; // L1H3
  token: number;
  position: number;
  target: number | null; // token whose logit is taken apart; null: the likeliest
  score: string;
  text: string;
  ablated: string[];
  distance: number;
  lens: "linear" | "logit";
  maskFirst: boolean;
}

export function toHash(selection: Selection): string {
  const q = new URLSearchParams();
  q.set("head", selection.head);
  q.set("token", String(selection.token));
  q.set("position", String(selection.position));
  if (selection.target !== null) q.set("target", String(selection.target));
  q.set("score", selection.score);
  if (selection.ablated.length) q.set("without", selection.ablated.join(","));
  if (selection.distance !== 1) q.set("distance", String(selection.distance));
  q.set("lens", selection.lens);
  if (selection.maskFirst) q.set("mask", "first");
  q.set("text", selection.text);
  return `#${q}`;
}

export function fromHash(hash: string, base: Selection): Selection {
  const q = new URLSearchParams(hash.replace(/^#/, ""));
  const whole = (name: string, otherwise: number): number => {
    const value = q.get(name);
    return value !== null && /^\d{1,7}$/.test(value) ? Number(value) : otherwise;
  };
  const head = q.get("head") ?? "";
  const without = (q.get("without") ?? "").split(",").filter((name) => /^L\d+H\d+$/.test(name));
  return {
    head: /^L\d+H\d+$/.test(head) ? head : base.head,
    token: whole("token", base.token),
    position: whole("position", base.position),
    target: q.has("target") ? whole("target", 0) : base.target,
    score: q.get("score") ?? base.score,
    text: (q.get("text") ?? base.text).slice(0, 20000),
    ablated: without,
    distance: whole("distance", base.distance),
    lens: q.get("lens") === "logit" ? "logit" : base.lens,
    maskFirst: q.get("mask") === "first" || (base.maskFirst && !q.has("head")),
  };
}

// Mounts the explorer in a page or in a notebook's widget. Styles live in a shadow root: nothing leaks.
import { render as draw } from "preact";
import { App, type Kernel } from "./app.tsx";
import type { Payload } from "./payload.ts";
import { toHash, type Selection } from "./selection.ts";
import styles from "./styles.css";

// For tests, which hold them against Python's numbers.
export { unpack } from "./arrays.ts";
export { Engine } from "./engine.ts";
export { liveRun } from "./run.ts";
export { TextTokens, label } from "./tokens.ts";

function mount(host: HTMLElement, payload: Payload, hash: string, onSelect: (selection: Selection) => void, kernel: Kernel | null) {
  const root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(styles);
  root.adoptedStyleSheets = [sheet];
  draw(<App payload={payload} hash={hash} onSelect={onSelect} kernel={kernel} />, root);
  return root;
}

/** The saved page: payload and selection come from the document and its address. */
export function page(): void {
  const host = document.getElementById("explorer")!;
  try {
    const payload = JSON.parse(document.getElementById("payload")!.textContent!) as Payload;
    if (payload.schema !== 1) throw new Error(`the page holds schema ${payload.schema}, the program reads 1`);
    let written = "";
    const onSelect = (selection: Selection) => {
      written = toHash(selection);
      try {
        history.replaceState(null, "", written);
      } catch {
        // In a sandboxed frame the address cannot be changed; everything else works.
      }
    };
    mount(host, payload, location.hash, onSelect, null);
    window.addEventListener("hashchange", () => {
      if (location.hash !== written) mount(host, payload, location.hash, onSelect, null);
    });
    document.documentElement.dataset["ready"] = "yes";
  } catch (error) {
    host.textContent = `The explorer could not start: ${error instanceof Error ? error.message : String(error)}`;
  }
}

interface WidgetModel {
  get(name: string): string;
  set(name: string, value: string): void;
  save_changes(): void;
  send(message: object): void;
  on(event: string, listener: (message: { type: string; number: number; answer?: object; error?: string }) => void): void;
  off(event: string, listener: unknown): void;
}

/** anywidget's face: texts are sent to the kernel when the page cannot run the model itself. */
export function render({ model, el }: { model: WidgetModel; el: HTMLElement }): () => void {
  const waiting = new Map<number, { good: (value: never) => void; bad: (error: Error) => void }>();
  let asked = 0;
  const listen = (message: { type: string; number: number; answer?: object; error?: string }) => {
    const one = waiting.get(message.number);
    if (message.type !== "run" || !one) return;
    waiting.delete(message.number);
    if (message.answer) one.good(message.answer as never);
    else one.bad(new Error(message.error ?? "the kernel gave no answer"));
  };
  model.on("msg:custom", listen);
  const kernel: Kernel = (text, ablated) => new Promise((good, bad) => {
    const number = ++asked;
    waiting.set(number, { good, bad });
    model.send({ type: "run", number, text, ablated });
  });
  const host = document.createElement("div");
  el.appendChild(host);
  let timer = 0;
  const onSelect = (selection: Selection) => {
    clearTimeout(timer);
    timer = window.setTimeout(() => {
      model.set("selection", toHash(selection));
      model.save_changes();
    }, 300);
  };
  const root = mount(host, JSON.parse(model.get("payload")) as Payload, model.get("selection"), onSelect, kernel);
  return () => {
    clearTimeout(timer);
    model.off("msg:custom", listen);
    draw(null, root);
  };
}

// What the bundle's engine and tokenizer give on what Python asks; run in node and inside the browser.
export function answersOf(asked, { Engine, TextTokens, label, liveRun }) {
  const answers = {};
  if (asked.labels) answers.labels = asked.labels.map(label);
  if (asked.payload) {
    const engine = new Engine(asked.payload);
    const last = (rows) => Array.from(rows.at(-1).logits);
    if (asked.rows) answers.logits = asked.rows.map((ids) => engine.run(ids).map((row) => Array.from(row.logits)));
    if (asked.without) answers.without = last(engine.run(asked.rows[0], asked.without));
    if (asked.paths) {
      answers.paths = asked.paths.map(({ ids, target, without }) => {
        engine.run(ids, without ?? []);
        return { paths: engine.paths(ids.length - 1, target), components: engine.components(ids.length - 1, target) };
      });
    }
    if (asked.circuits) {
      answers.circuits = asked.circuits.map(({ layer, head, token, distance }) => ({
        qk: Array.from(engine.qkRow(layer, head, token, distance)), ov: Array.from(engine.ovRow(layer, head, token)),
      }));
    }
    if (asked.timed) {
      const ids = asked.timed;
      engine.run([]);
      for (let n = 1; n <= ids.length; n++) engine.run(ids.slice(0, n)); // warm
      const times = [];
      for (let n = 1; n <= ids.length; n++) {
        const cut = ids.slice(0, n - 1);
        engine.run(cut);
        const begin = performance.now();
        engine.run(ids.slice(0, n));
        times.push(performance.now() - begin);
      }
      answers.append_ms = times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
    }
  }
  if (asked.text) {
    const { payload } = asked;
    const run = liveRun(payload, new Engine(payload), new TextTokens(payload.tokenizer, {}), asked.text, []);
    const layers = Array.from({ length: payload.model.n_layers + 1 }, (_, layer) => layer);
    const grid = (kind) => layers.map((layer) => run.ids.map((_, p) => run.lens(kind, layer, p)));
    const last = run.ids.length - 1;
    answers.run = { ids: run.ids, next: run.next(last), linear: grid("linear"), logit: grid("logit"), taken: run.take(last, asked.target, true) };
  }
  if (asked.tokenizer) {
    const tokens = new TextTokens(asked.tokenizer, {});
    answers.tokens = asked.strings.map((text) => tokens.encode(text));
  }
  return answers;
}

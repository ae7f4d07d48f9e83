// Opens saved pages in Chromium and prints what was seen.
// usage: node page.mjs frontend-folder chromium job.json
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { answersOf } from "./answers.mjs";

const [folder, chromium, jobFile] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${folder}/`));
const { chromium: launcher } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const job = JSON.parse(readFileSync(jobFile, "utf8"));
const browser = await launcher.launch({ executablePath: chromium, args: ["--no-sandbox"] });

async function open(file, { width = 1400, scheme = "light", hash = "", slow = 1, bypassCSP = false } = {}) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme: scheme, bypassCSP });
  const page = await context.newPage();
  const seen = { requests: [], errors: [] };
  page.on("request", (request) => seen.requests.push(request.url().slice(0, 200)));
  page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
  page.on("pageerror", (error) => seen.errors.push(error.message));
  page.on("dialog", (dialog) => { seen.errors.push(`dialog ${dialog.message()}`); dialog.dismiss(); });
  const session = await context.newCDPSession(page);
  if (slow > 1) await session.send("Emulation.setCPUThrottlingRate", { rate: slow });
  await session.send("Performance.enable", { timeDomain: "threadTicks" }); // processor time: other programs do not count
  seen.cpu_ms = async () => {
    const { metrics } = await session.send("Performance.getMetrics");
    return 1000 * metrics.find((one) => one.name === "TaskDuration").value;
  };
  await page.goto(pathToFileURL(file).href + hash);
  await page.waitForSelector("html[data-ready]", { timeout: 60000 });
  seen.ready_ms = await page.evaluate(() => performance.now());
  seen.ready_cpu_ms = await seen.cpu_ms();
  return { page, seen, context };
}

const focused = () => {
  const one = document.getElementById("explorer").shadowRoot.activeElement;
  return { view: one?.closest(".view")?.id ?? null, role: one?.getAttribute("role") ?? one?.tagName ?? null };
};

const checks = {
  async look({ file, width, scheme, hash }) {
    const { page, seen, context } = await open(file, { width, scheme, hash });
    await page.waitForTimeout(400);
    const found = { ...seen, scroll: await page.evaluate(() => document.documentElement.scrollWidth), address: await page.evaluate(() => location.hash),
      text: await page.locator(".explorer").innerText(), check: await page.locator(".check").textContent() };
    await context.close();
    return found;
  },
  async score({ file, words }) {
    const { page, seen, context } = await open(file);
    await page.getByLabel("Colour heads by").selectOption({ label: words });
    await page.waitForTimeout(200);
    const cells = await page.locator('#map [title^="L"]').evaluateAll((all) => all.map((one) => one.title));
    const found = { ...seen, cells, address: page.url() };
    await context.close();
    return found;
  },
  async point({ file, width }) {
    const { page, context } = await open(file, { width });
    await page.waitForTimeout(600);
    const text = await page.locator(".explorer").innerText();
    const cell = await page.locator('#lens [aria-selected="true"]').boundingBox();
    const read = async () => ({
      text: await page.locator("#text").innerText(), head: await page.locator("#head > .lead").innerText(),
      lens: await page.locator('#lens [aria-selected="true"]').getAttribute("title"), address: page.url(),
    });
    await page.locator("#text .piece").nth(3).hover();
    await page.waitForTimeout(200);
    const pointed = await read();
    await page.mouse.move(1, 1);
    await page.waitForTimeout(200);
    const left = await read();
    await context.close();
    return { text, pointed, left, in_sight: cell.x > 0 && cell.x + cell.width < width };
  },
  async axe({ file, scheme }) {
    const { page, context } = await open(file, { scheme, bypassCSP: true });
    await page.waitForTimeout(500);
    await page.evaluate(axe);
    const result = await page.evaluate(() => globalThis.axe.run());
    await context.close();
    return result.violations.map(({ id, impact, nodes }) => ({ id, impact, where: nodes.slice(0, 3).map((n) => n.html.slice(0, 160)), why: nodes[0].failureSummary }));
  },
  async keyboard({ file }) {
    const { page, seen, context } = await open(file);
    const stops = [];
    for (let i = 0; i < 150; i++) { // about a hundred stops, then round again
      await page.keyboard.press("Tab");
      const at = await page.evaluate(focused);
      if (at.role === null) continue; // the end, or an entry that went when its list was drawn anew
      stops.push(at);
      if (at.role === "gridcell" && at.view === "map" && !seen.moved) {
        await page.keyboard.press("ArrowUp");
        await page.waitForTimeout(100);
        seen.moved = await page.evaluate(() => location.hash);
        seen.stayed = await page.evaluate(focused);
      }
      if (at.role === "option" && !seen.text) {
        await page.keyboard.press("Home");
        await page.waitForTimeout(600); // until what follows the position late (paths, shares) has been drawn
        seen.text = await page.evaluate(() => location.hash);
      }
    }
    await context.close();
    return { ...seen, stops };
  },
  async keystroke({ file, slow, text }) {
    const { page, seen, context } = await open(file, { slow });
    const times = await page.evaluate(async (typed) => {
      const area = document.getElementById("explorer").shadowRoot.querySelector("textarea");
      const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
      const found = [];
      for (let n = typed.length - 12; n <= typed.length; n++) {
        area.value = typed.slice(0, n);
        const begin = performance.now();
        area.dispatchEvent(new Event("input", { bubbles: true }));
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        found.push(performance.now() - begin);
        await frame();
      }
      return found;
    }, text);
    const cpu = [];
    const area = page.locator("textarea");
    await page.waitForTimeout(500);
    for (const letter of " again and") { // with what follows the key: paths and lens
      const before = await seen.cpu_ms();
      await area.press(letter === " " ? "Space" : letter);
      await page.waitForTimeout(30);
      cpu.push((await seen.cpu_ms()) - before);
    }
    await context.close();
    const median = (list) => list.sort((a, b) => a - b)[Math.floor(list.length / 2)];
    return { ready_ms: seen.ready_ms, ready_cpu_ms: seen.ready_cpu_ms, median_ms: median(times), cpu_ms: median(cpu) };
  },
  async search({ file, strings }) {
    const { page, seen, context } = await open(file);
    const shown = [];
    for (const text of strings) {
      await page.locator("input[type=search]").fill(text);
      shown.push(await page.locator(".chips button").allInnerTexts());
    }
    const hacked = await page.evaluate(() => globalThis.hacked ?? null);
    await context.close();
    return { ...seen, shown, hacked };
  },
};

checks.engine = async ({ file, questions }) => { // the committed bundle, inside a saved page
  const { page, context } = await open(file);
  const asked = readFileSync(questions, "utf8");
  const found = await page.evaluate(`JSON.stringify((${answersOf})(${asked}, LensLinearExplorer))`);
  await context.close();
  return JSON.parse(found);
};

const answers = [];
for (const { check, ...options } of job) answers.push(await checks[check](options));
await browser.close();
process.stdout.write(JSON.stringify(answers));

// Runs the bundle in node on what Python asks, and prints what it gives.
// usage: node engine.mjs explorer.js questions.json
import { readFileSync } from "node:fs";
import { answersOf } from "./answers.mjs";

const [bundle, questions] = process.argv.slice(2).map((path) => readFileSync(path, "utf8"));
const lib = new Function(`${bundle};return LensLinearExplorer`)();
process.stdout.write(JSON.stringify(answersOf(JSON.parse(questions), lib)));

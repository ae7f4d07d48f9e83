// Builds the one bundle that the page and the notebook share. `node build.mjs [outfile]`
import { build } from "esbuild";

const outfile = process.argv[2] ?? "../lens_linear/explorer/explorer.js";
await build({
  entryPoints: ["src/main.tsx"],
  outfile,
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "LensLinearExplorer",
  target: "es2022",
  charset: "ascii", // U+0085 and U+FEFF inside the tokenizer's classes survive any encoding
  legalComments: "none",
  loader: { ".css": "text" },
  jsx: "automatic",
  jsxImportSource: "preact",
});

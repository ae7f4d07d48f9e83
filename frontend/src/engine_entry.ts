export { Engine } from "./engine.ts";
export { TextTokens } from "./tokens.ts";
export { unpack } from "./arrays.ts";

#!/bin/sh
# Types, then the bundle built again and compared byte for byte with the committed one.
set -eu
cd "$(dirname "$0")"
[ -d node_modules ] || npm ci --no-audit --no-fund
npx tsc --noEmit
built=$(mktemp)
trap 'rm -f "$built"' EXIT
node build.mjs "$built"
cmp "$built" ../lens_linear/explorer/explorer.js

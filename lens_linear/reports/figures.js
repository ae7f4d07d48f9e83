// Draws the figures of a page: each when it comes near the window, all before print; in the page's own colours.
// A figure is a JSON script whose data-figure names the element that it is drawn into.
(function () {
  "use strict";
  const GRID = "rgba(127,127,127,.3)", LINE = "rgba(127,127,127,.9)";
  const INKS = /^(black|#000000|#222222|#333333|#444444|#555555)$/i, PAPERS = /^(white|#ffffff|rgba\(255, ?255, ?255, ?[\d.]+\))$/i;
  const SHEET = 680; // pixels between the margins of a printed page
  const preference = matchMedia("(prefers-color-scheme: dark)");
  const places = new Map(), drawn = new Set();
  let printing = false;

  const isDark = () => {
    const theme = document.body.dataset.theme; // Furo's switch; other pages follow the preference
    return !printing && (theme === "dark" || (theme !== "light" && preference.matches));
  };

  // What is made for white paper, wherever in a figure: paper and ink take the page's colours, the darkest shades are lifted,
  // the palest greys and every scale that runs to white are turned: what is near the paper is near the page's ground.
  const PALE = 208, WHITE = 235, SPAN = 0.8; // channels of 255; share of lightness that a turned scale takes up
  const channels = (value) => {
    const hex = /^#([\da-f]{2})([\da-f]{2})([\da-f]{2})$/i.exec(value), rgb = /^rgb\((\d+), ?(\d+), ?(\d+)\)$/.exec(value);
    return hex ? hex.slice(1).map((part) => parseInt(part, 16)) : rgb && rgb.slice(1).map(Number);
  };
  const turned = (parts, paper) => { // the same hue, light for dark
    const ground = channels(paper) || [0, 0, 0], shift = 255 - Math.max(...parts) - Math.min(...parts);
    return `rgb(${parts.map((part, i) => Math.min(255, Math.round(ground[i] + SPAN * (part + shift)))).join(",")})`;
  };
  const onDark = (value, ink, paper) => {
    if (INKS.test(value)) return ink;
    if (PAPERS.test(value)) return paper;
    const parts = channels(value);
    if (parts && Math.min(...parts) >= PALE) return turned(parts, paper);
    if (!parts || value[0] === "#") return value;
    const light = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    return light > 95 ? value : `rgb(${parts.map((part) => Math.round(part + (255 - part) * (95 - light) / 160)).join(",")})`;
  };
  const recolour = (part, ink, paper) => {
    for (const [key, value] of Object.entries(part)) {
      if (key === "colorscale" && Array.isArray(value)) {
        if (value.some(([, one]) => Math.min(...(channels(one) || [0])) >= WHITE))
          part[key] = value.map(([place, one]) => [place, value.length > 2 ? turned(channels(one), paper) : onDark(one, ink, paper)]);
      } else if (typeof value === "string" && /color$/i.test(key)) part[key] = onDark(value, ink, paper);
      else if (Array.isArray(value) && /color$/i.test(key)) part[key] = value.map((one) => (typeof one === "string" ? onDark(one, ink, paper) : one));
      else if (value && typeof value === "object" && (!Array.isArray(value) || typeof value[0] === "object"))
        (Array.isArray(value) ? value : [value]).forEach((one) => one && recolour(one, ink, paper));
    }
  };

  const paint = ({ data, layout }) => {
    if (isDark()) {
      const page = getComputedStyle(document.body), ink = page.color, paper = page.backgroundColor;
      recolour({ data, layout }, ink, paper);
      for (const bar of data.filter((trace) => trace.type === "bar")) // plotly's own is a dark grey
        for (const error of [bar.error_x, bar.error_y]) if (error && !error.color) error.color = ink;
      for (const trace of data)
        if (trace.type === "table") {
          Object.assign(trace.header, { fill: { color: GRID }, line: { color: LINE } });
          Object.assign(trace.cells, { fill: { color: paper }, line: { color: LINE } });
        }
      Object.assign(layout, { paper_bgcolor: paper, plot_bgcolor: paper });
      layout.font = { ...layout.font, color: ink };
      for (const key of Object.keys(layout))
        if (/^[xy]axis/.test(key)) Object.assign(layout[key], { gridcolor: GRID, zerolinecolor: LINE, linecolor: LINE, tickcolor: LINE });
    }
    return { data, layout };
  };

  const draw = (id) => {
    drawn.add(id);
    const place = document.getElementById(id), { data, layout } = paint(JSON.parse(places.get(id)));
    if (printing) layout.width = Math.min(place.clientWidth, SHEET);
    else widen(place, data, layout);
    const settings = { displaylogo: false, responsive: true, displayModeBar: printing || innerWidth < 600 ? false : "hover" };
    const lay = (rounds) => Plotly.react(id, data, layout, settings).then(() => {
      place.style.height = `${layout.height || 450}px`;
      if (rounds && fit(place, data, layout)) return lay(rounds - 1);
      // The words stand on the element; inside, only the buttons are read out.
      place.setAttribute("role", "group");
      place.querySelectorAll(".main-svg").forEach((layer) => layer.setAttribute("aria-hidden", "true"));
    });
    lay(5);
  };

  // What only the drawn figure tells: labels and numbers that have no room are left out, and so is height that square cells
  // do not use. Says whether anything changed.
  const LINE_OF_TEXT = 15, LETTER = 7, NAME_LETTER = 8, APART = 3; // pixels
  // A name of an axis or of colours in lines of at most so many pixels; says whether it was too long.
  const wrap = (name, pixels) => {
    if (!name || !name.text || name.text.includes("<br>") || NAME_LETTER * name.text.length <= pixels) return false;
    const lines = [""];
    for (const word of name.text.split(" "))
      if (lines.at(-1) && NAME_LETTER * (lines.at(-1).length + 1 + word.length) > pixels) lines.push(word);
      else lines.push(`${lines.pop()} ${word}`.trim());
    name.text = lines.join("<br>");
    return lines.length > 1;
  };
  // Names at points that lie on each other: the later one goes below its point, then it goes (the hover has it).
  const part = (place, data) => {
    const seen = [];
    let changed = false;
    for (const name of place.querySelectorAll(".textpoint text")) {
      const box = name.getBoundingClientRect(), [first] = name.closest(".trace").__data__;
      const own = data[first.trace.index], { i } = name.parentNode.__data__;
      const under = seen.some((one) => one.right + APART > box.left && one.left < box.right + APART && one.bottom > box.top && one.top < box.bottom);
      if (!under || !box.width) {
        if (box.width) seen.push(box);
        continue;
      }
      if (!Array.isArray(own.textposition)) own.textposition = own.text.map(() => own.textposition || "middle center");
      if (own.textposition[i] === "top center") own.textposition[i] = "bottom center";
      else own.text[i] = "";
      changed = true;
    }
    return changed;
  };
  const setHeight = (layout, height) => {
    if (layout.title) layout.title.y = 1 - ((1 - layout.title.y) * layout.height) / height; // as far from the top
    layout.height = height;
  };
  // A figure is made with room for its legend at 700 pixels; where that takes more lines the figure grows, once.
  const LEGEND_LINE = 29, grown = new WeakSet();
  const roomForLegend = (data, layout, full) => {
    const { legend } = full;
    if (!legend || legend.orientation !== "h" || !legend._height || grown.has(layout)) return false;
    const names = new Set(data.filter((trace) => trace.name && trace.showlegend !== false).map((trace) => trace.name));
    const widest = Math.max(...[...names].map((name) => name.length));
    const lines = Math.max(2, Math.ceil(names.size / Math.max(1, Math.floor(610 / (45 + 8 * widest)))));
    const more = Math.round(legend._height - LEGEND_LINE * lines);
    if (more < LEGEND_LINE / 2) return false;
    grown.add(layout);
    setHeight(layout, layout.height + more);
    return true;
  };
  // A table whose words have no room in its columns is drawn wider than its place, which scrolls.
  const widen = (place, data, layout) => {
    const [table] = data.filter((trace) => trace.type === "table");
    if (!table) return;
    const longest = (cell) => Math.max(...String(cell).split(/\s|<br>/).map((word) => word.replace(/&#?\w+;/g, "x").length));
    const columns = table.header.values.map((head, i) => [head].concat(table.cells.values[i]));
    const least = columns.map((cells) => 20 + NAME_LETTER * Math.max(...cells.map(longest)));
    const shares = table.columnwidth || least.map(() => 1), sum = (parts) => parts.reduce((all, one) => all + one);
    const margin = (layout.margin.l ?? 60) + (layout.margin.r ?? 20), room = place.clientWidth - margin;
    if (least.every((one, i) => one <= (room * shares[i]) / sum(shares))) return;
    table.columnwidth = least;
    if (sum(least) <= room) return;
    // Texts of several words get lines of up to 24 letters.
    table.columnwidth = columns.map((cells, i) => Math.max(least[i], 20 + NAME_LETTER * Math.min(24, Math.max(...cells.map((cell) => String(cell).length)))));
    layout.width = sum(table.columnwidth) + margin;
    Object.assign(place.style, { overflowX: "auto", overflowY: "hidden" });
    place.tabIndex = 0;
  };
  const fit = (place, data, layout) => {
    const full = place._fullLayout;
    let changed = false;
    for (const key of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      const axis = layout[key], labels = axis.ticktext, length = full[key] && full[key]._length;
      if (axis.tickmode !== "array" || !labels || labels.length < 2 || !length) continue;
      const level = key[0] === "x" && axis.tickangle !== -90;
      const room = level ? LETTER * (1 + Math.max(...labels.map((label) => label.length))) : LINE_OF_TEXT;
      const onAxis = full[key].type === "log" ? Math.log10 : Number;
      const [from, to] = full[key].range, [first, last] = [axis.tickvals[0], axis.tickvals[labels.length - 1]].map(onAxis);
      const pitch = (length * Math.abs((last - first) / (to - from))) / (labels.length - 1);
      if (level && pitch < room) axis.tickangle = -90;
      const step = Math.ceil(LINE_OF_TEXT / pitch);
      if (pitch >= room) continue;
      changed = true;
      axis.ticktext = labels.filter((_, i) => i % step === 0);
      axis.tickvals = axis.tickvals.filter((_, i) => i % step === 0);
    }
    for (const key of Object.keys(layout).filter((key) => /^xaxis/.test(key) && full[key])) {
      const middle = full[key]._offset + full[key]._length / 2;
      changed = wrap(layout[key].title, 2 * Math.min(middle, place.clientWidth - middle) - 16) || changed;
    }
    const square = Object.keys(layout).find((key) => /^yaxis/.test(key) && layout[key].scaleanchor);
    for (const key of Object.keys(layout).filter((key) => /^yaxis/.test(key) && full[key] && !square))
      changed = wrap(layout[key].title, full[key]._length + 24) || changed;
    changed = roomForLegend(data, layout, full) || changed;
    for (const { colorbar } of data.filter((trace) => trace.colorbar)) {
      changed = wrap(colorbar.title, full._size.h + 24) || changed;
      if (full._size.h > 100 || colorbar.nticks) continue;
      colorbar.nticks = 3;
      changed = true;
    }
    data.forEach((trace, i) => {
      if (trace.type !== "heatmap" || !trace.texttemplate) return;
      const axis = full[(trace.xaxis || "x").replace("x", "xaxis")], columns = place._fullData[i].z[0].length;
      const written = /%\{text\}/.test(trace.texttemplate) ? [].concat(...trace.text).map((text) => String(text || "").length) : [5];
      if (axis._length / columns > LETTER * Math.max(...written)) return;
      delete trace.texttemplate;
      changed = true;
    });
    changed = part(place, data) || changed;
    const names = square && [layout.yaxis.title, layout.xaxis.title];
    if (names && names.every((name) => name && name.text) && LETTER * names[0].text.length > full[square]._length) {
      names[1].text += ` →<br>${names[0].text} ↓`; // a name longer than its axis would run into the title
      names[0].text = "";
      changed = true;
    }
    const spare = square ? Math.round(full._size.h - full[square]._length) : 0;
    if (spare > 8) {
      setHeight(layout, layout.height - spare);
      changed = true;
    }
    return changed;
  };

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      draw(entry.target.id);
    }
  }, { rootMargin: "1200px" });

  for (const source of document.querySelectorAll("script[data-figure]")) {
    const id = source.dataset.figure;
    places.set(id, source.textContent);
    watcher.observe(document.getElementById(id));
  }
  const again = () => drawn.forEach(draw);
  preference.addEventListener("change", again);
  new MutationObserver(again).observe(document.body, { attributes: true, attributeFilter: ["data-theme"] });
  addEventListener("beforeprint", () => {
    printing = true;
    document.querySelectorAll("details").forEach((fold) => (fold.open ||= fold.querySelectorAll("tr").length < 100)); // not ten pages of rows
    for (const id of places.keys()) draw(id);
  });
  addEventListener("afterprint", () => { printing = false; again(); });
})();

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

  // What is made for white paper, wherever in a figure: paper and ink take the page's colours, the darkest shades are lifted.
  const onDark = (value, ink, paper) => {
    if (INKS.test(value)) return ink;
    if (PAPERS.test(value)) return paper;
    const rgb = /^rgb\((\d+), ?(\d+), ?(\d+)\)$/.exec(value);
    if (!rgb) return value;
    const parts = rgb.slice(1).map(Number), light = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    return light > 95 ? value : `rgb(${parts.map((part) => Math.round(part + (255 - part) * (95 - light) / 160)).join(",")})`;
  };
  const recolour = (part, ink, paper) => {
    for (const [key, value] of Object.entries(part)) {
      if (typeof value === "string" && /color$/i.test(key)) part[key] = onDark(value, ink, paper);
      else if (Array.isArray(value) && /color$/i.test(key)) part[key] = value.map((one) => (typeof one === "string" ? onDark(one, ink, paper) : one));
      else if (value && typeof value === "object" && (!Array.isArray(value) || typeof value[0] === "object"))
        (Array.isArray(value) ? value : [value]).forEach((one) => one && recolour(one, ink, paper));
    }
  };

  const paint = ({ data, layout }) => {
    if (isDark()) {
      const page = getComputedStyle(document.body), ink = page.color, paper = page.backgroundColor;
      recolour({ data, layout }, ink, paper);
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
    // Square cells on a narrow page need no more height than width.
    const square = Object.keys(layout).some((key) => /^yaxis/.test(key) && layout[key].scaleanchor);
    if (square && place.clientWidth) layout.height = Math.min(layout.height, place.clientWidth + layout.margin.t + 40);
    if (printing) layout.width = Math.min(place.clientWidth, SHEET);
    place.style.height = `${layout.height || 450}px`;
    Plotly.react(id, data, layout, { displaylogo: false, responsive: true, displayModeBar: innerWidth < 600 ? false : "hover" });
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
    document.querySelectorAll("details").forEach((fold) => (fold.open = true));
    for (const id of places.keys()) draw(id);
  });
  addEventListener("afterprint", () => { printing = false; again(); });
})();

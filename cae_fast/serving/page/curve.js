// SPDX-License-Identifier: Apache-2.0
// Probabilities against the position on the path, as SVG in the page's own pixels.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 46, right: 14, top: 26, bottom: 26 };
const HEIGHT = 230;

function element(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (text) made.textContent = text;
  return made;
}

/**
 * The curve with its cursor.
 *
 * @param host element it lives in.
 * @param onPick called with a position in [0, 1] when the reader points into the plot.
 */
export function makeCurve(host, onPick) {
  let shown = null;
  let cursor = null;
  let position = 0;
  let width = 0;

  const x = (t) => MARGIN.left + (width - MARGIN.left - MARGIN.right) * t;
  const y = (p) => HEIGHT - MARGIN.bottom - (HEIGHT - MARGIN.top - MARGIN.bottom) * p;

  function axes(svg) {
    for (const [p, text] of [[0, "0"], [0.5, "50 %"], [1, "100 %"]]) {
      svg.append(element("line", { class: "grid", x1: x(0), x2: x(1), y1: y(p), y2: y(p) }));
      svg.append(element("text", { class: "end", x: x(0) - 8, y: y(p) + 4 }, text));
    }
    const there = shown.read.exemplarAt;
    const ticks =
      there < 1
        ? [[0, "image"], [0.25, "0.25"], [there, "exemplar"], [1, "beyond"]]
        : [[0, "image"], [0.25, "0.25"], [0.5, "0.5"], [0.75, "0.75"], [1, "exemplar"]];
    for (const [t, text] of ticks) {
      if (width < 420 && ![0, 0.5, there, 1].includes(t)) continue;
      const place = t === 0 ? "start" : t === 1 ? "end" : "mid";
      const at = t === 0 ? x(0) - 4 : t === 1 ? x(1) + 6 : x(t);
      svg.append(element("text", { class: place, x: at, y: HEIGHT - 6 }, text));
    }
  }

  function flip(svg) {
    const { flip: t, bracket } = shown.read;
    if (t === null) return;
    if (bracket) {
      const [low, high] = bracket.map(x);
      const size = { x: low, width: Math.max(high - low, 1), y: 4, height: HEIGHT - MARGIN.bottom - 4 };
      svg.append(element("rect", { class: "bracket", ...size }));
    }
    svg.append(element("line", { class: "flip", x1: x(t), x2: x(t), y1: 4, y2: HEIGHT - MARGIN.bottom }));
    const side = t > 0.6 ? { class: "flip-label end", x: x(t) - 7 } : { class: "flip-label", x: x(t) + 7 };
    svg.append(element("text", { ...side, y: 14 }, `flip at ${t.toFixed(3)}`));
  }

  function line(svg, { k, kind }) {
    const group = element("g", { class: `curve ${kind}` });
    const finite = ({ probabilities }) => Number.isFinite(probabilities[k]);
    const all = [...shown.read.path, ...shown.read.frames].filter(finite).sort((a, b) => a.t - b.t);
    const points = all.map((point) => `${x(point.t).toFixed(1)},${y(point.probabilities[k]).toFixed(1)}`);
    group.append(element("polyline", { points: points.join(" ") }));
    for (const { t, probabilities } of kind === "passed" ? [] : shown.read.path.filter(finite)) {
      const [at, up] = [x(t), y(probabilities[k])];
      // Round for the source, square for the target: told apart without colour.
      group.append(
        kind === "source"
          ? element("circle", { cx: at, cy: up, r: 2.8 })
          : element("rect", { x: at - 2.6, y: up - 2.6, width: 5.2, height: 5.2 }),
      );
    }
    svg.append(group);
  }

  function draw() {
    width = host.clientWidth;
    if (!shown || width < 80) return;
    const svg = element("svg", {
      width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": shown.says,
    });
    axes(svg);
    flip(svg);
    for (const drawn of shown.classes) line(svg, drawn);
    cursor = element("g", { class: "cursor" });
    cursor.append(element("line", { y1: MARGIN.top - 6, y2: HEIGHT - MARGIN.bottom }));
    svg.append(cursor);
    host.replaceChildren(svg);
    move(position);
  }

  function move(t) {
    position = t;
    cursor?.setAttribute("transform", `translate(${x(t).toFixed(1)} 0)`);
  }

  const pick = (event) => {
    const along = (event.clientX - host.getBoundingClientRect().left - MARGIN.left) / (x(1) - x(0));
    onPick(Math.min(Math.max(along, 0), 1));
  };
  host.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button !== 0) return;
    host.setPointerCapture(event.pointerId);
    pick(event);
  });
  host.addEventListener("pointermove", (event) => {
    if (host.hasPointerCapture(event.pointerId)) pick(event);
  });
  new ResizeObserver(() => host.clientWidth !== width && draw()).observe(host);

  return {
    /** Shows another answer: `read` of readAnswer, `classes` of drawnClasses, `says` for readers. */
    show(read, classes, says) {
      shown = { read, classes, says };
      draw();
    },
    move,
  };
}

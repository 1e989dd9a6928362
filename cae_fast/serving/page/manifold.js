// SPDX-License-Identifier: Apache-2.0
// The bank's class codes in two dimensions, with the image's code, its path and its exemplar.
// Source and target have their colours and shapes, all others are grey: no palette to tell apart.

const PADDING = 26;

/** Draws on a canvas; redraws when its size or the colour scheme changes. */
export function makeManifold(canvas) {
  let shown = null;
  let position = 0;

  const color = (name) => getComputedStyle(canvas).getPropertyValue(`--${name}`).trim();

  function scales(width, height) {
    const points = [...shown.points, ...shown.marks];
    const bounds = [0, 1].map((axis) => {
      const values = points.map((point) => point[axis]);
      return [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
    });
    // One scale for both axes: distances in the picture are distances of the codes.
    const [wide, high] = bounds.map(([low, top]) => Math.max(top - low, 1e-9));
    const scale = Math.min((width - 2 * PADDING) / wide, (height - 2 * PADDING) / high);
    const [midX, midY] = bounds.map(([low, top]) => (low + top) / 2);
    return ([x, y]) => [width / 2 + (x - midX) * scale, height / 2 - (y - midY) * scale];
  }

  function draw() {
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!shown || !shown.points.length || width < 40) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const place = scales(width, height);
    const { read, goal } = shown;
    const ranked = { other: [], source: [], target: [] };
    for (const point of shown.points) {
      const kind = point[2] === read.source ? "source" : point[2] === goal ? "target" : "other";
      ranked[kind].push(place(point));
    }
    context.globalAlpha = 0.55;
    dots(context, ranked.other, color("dot"), 1.7, "circle");
    context.globalAlpha = 0.75;
    dots(context, ranked.source, color("source"), 2.6, "circle");
    dots(context, ranked.target, color("target"), 2.6, "square");
    context.globalAlpha = 1;
    classLabels(context, place, width);
    path(context, place);
  }

  function dots(context, places, fill, size, shape) {
    context.fillStyle = fill;
    for (const [x, y] of places) {
      context.beginPath();
      if (shape === "circle") context.arc(x, y, size, 0, 2 * Math.PI);
      else context.rect(x - size, y - size, 2 * size, 2 * size);
      context.fill();
    }
  }

  /** Names in the middle (component-wise median) of each class; above it for the two in question. */
  function classLabels(context, place, width) {
    const { read, goal, points } = shown;
    const groups = new Map();
    for (const point of points) {
      if (!groups.has(point[2])) groups.set(point[2], []);
      groups.get(point[2]).push(point);
    }
    const both = [...groups.keys()].filter((k) => k === read.source || k === goal);
    const others = [...groups.keys()].filter((k) => k !== read.source && k !== goal);
    const kept = others.length <= 20 ? others : [];
    const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineJoin = "round";
    for (const k of [...kept, ...both]) {
      const members = groups.get(k);
      const [x, middle] = place([0, 1].map((axis) => median(members.map((point) => point[axis]))));
      const strong = both.includes(k);
      const heights = members.map((point) => place(point)[1]).sort((a, b) => a - b);
      const y = strong ? Math.max(heights[Math.floor(heights.length / 50)] - 12, 10) : middle;
      context.font = `${strong ? "600 15px" : "12.5px"} ${getComputedStyle(canvas).fontFamily}`;
      const name = shorten(String(read.names[k] ?? k));
      const half = context.measureText(name).width / 2;
      const at = Math.min(Math.max(x, half + 6), width - half - 6);
      halo(context, () => context.strokeText(name, at, y));
      context.fillStyle = color(k === read.source ? "source" : k === goal ? "target" : "soft");
      context.fillText(name, at, y);
    }
  }

  function halo(context, stroke) {
    context.strokeStyle = color("card");
    context.lineWidth = 4;
    stroke();
  }

  function path(context, place) {
    const { code } = shown;
    const line = (code?.path ?? []).map(place);
    if (line.length > 1) {
      const trace = () => {
        context.beginPath();
        line.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
        context.stroke();
      };
      halo(context, trace);
      context.strokeStyle = color("ink");
      context.lineWidth = 1.8;
      trace();
    }
    if (code?.exemplar) star(context, place(code.exemplar));
    if (code?.image) {
      const [x, y] = place(code.image);
      ring(context, x, y, 6.5, color("card"), color("ink"), 2.2);
    }
    if (line.length > 1) {
      const [x, y] = placeAt(line, code.t, position);
      ring(context, x, y, 3.6, color("ink"), color("card"), 1.4);
    }
  }

  function ring(context, x, y, radius, fill, stroke, lineWidth) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fillStyle = fill;
    context.fill();
    context.strokeStyle = stroke;
    context.lineWidth = lineWidth;
    context.stroke();
  }

  function star(context, [x, y]) {
    context.beginPath();
    for (let i = 0; i < 10; i += 1) {
      const radius = i % 2 ? 3.8 : 9;
      const angle = (Math.PI * i) / 5 - Math.PI / 2;
      context.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
    }
    context.closePath();
    halo(context, () => context.stroke());
    context.fillStyle = color("ink");
    context.fill();
  }

  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  return {
    /**
     * Shows a bank and an answer.
     *
     * @param points [[x, y, label]] of the bank.
     * @param read answer of readAnswer; `read.code` holds the image's own places.
     * @param goal class index of the target or, without one, of the class reached.
     */
    show(points, read, goal) {
      const code = read.code;
      const finite = (point) => Array.isArray(point) && point.slice(0, 2).every(Number.isFinite);
      const clean = code && {
        image: finite(code.image) ? code.image : null,
        exemplar: finite(code.exemplar) ? code.exemplar : null,
        ...pathOf(read, code, finite),
      };
      const marks = clean ? [clean.image, clean.exemplar, ...clean.path].filter(Boolean) : [];
      shown = { points: points.filter(finite), read, goal, code: clean, marks };
      draw();
    },
    /** Moves the dot on the path to a position in [0, 1]. */
    move(t) {
      position = t;
      draw();
    },
  };
}

/** The path's vertices and their positions, with the answer's points or evenly spaced; its end. */
function pathOf(read, code, finite) {
  const given = code.path ?? [];
  const even = (i) => i / Math.max(given.length - 1, 1);
  const all = given.map((point, i) => [point, given.length === read.path.length ? read.path[i].t : even(i)]);
  if (finite(code.end) && !(all.at(-1)?.[1] >= 1)) all.push([code.end, 1]);
  const kept = all.filter(([point]) => finite(point));
  return { path: kept.map(([point]) => point), t: kept.map(([, t]) => t) };
}

/** The place at position t of a line whose vertices lie at ascending positions. */
function placeAt(line, positions, t) {
  const above = positions.findIndex((at) => at >= t);
  const high = above < 0 ? line.length - 1 : Math.max(above, 1);
  const [from, to] = [positions[high - 1], positions[high]];
  const weight = Math.min(Math.max((t - from) / Math.max(to - from, 1e-9), 0), 1);
  return [0, 1].map((i) => line[high - 1][i] + (line[high][i] - line[high - 1][i]) * weight);
}

function shorten(text) {
  return text.length > 24 ? `${text.slice(0, 23)}…` : text;
}

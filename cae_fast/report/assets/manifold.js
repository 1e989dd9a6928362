// SPDX-License-Identifier: Apache-2.0
// The map of codes: views, zoom, classes, pictures under the pointer, explanations on a click.
"use strict";
(() => {
  const root = document.querySelector(".manifold");
  const canvas = document.getElementById("map");
  if (!canvas) return;
  const data = JSON.parse(document.getElementById("points").textContent);
  const hover = document.getElementById("hover");
  const shown = document.getElementById("shown");
  const tools = root.querySelector(".tools");
  const pick = tools.querySelector("[name=view]");
  const edges = tools.querySelector("[name=edges]");
  const context = canvas.getContext("2d");
  const explained = new Set(data.explained);
  const hidden = new Set();
  const margin = 26;
  let zoom = 1, left = 0, top = 0, at = -1, width = 1, height = 1;

  const visible = (i) => !hidden.has(data.points[i].label);
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function place(i) {
    const xy = data.views[pick.value].xy;
    const side = Math.min(width, height) - 2 * margin;
    const wide = (width - side) / 2, high = (height - side) / 2;
    return [(wide + xy[2 * i] * side) * zoom + left, (high + xy[2 * i + 1] * side) * zoom + top];
  }

  function mark(x, y, shape, r) {
    context.beginPath();
    if (shape === "square") context.rect(x - r, y - r, 2 * r, 2 * r);
    else if (shape === "triangle") {
      context.moveTo(x, y - r); context.lineTo(x + r, y + r); context.lineTo(x - r, y + r); context.closePath();
    } else if (shape === "cross") {
      const t = r / 2.4;
      context.rect(x - r, y - t, 2 * r, 2 * t); context.rect(x - t, y - r, 2 * t, 2 * r);
    } else context.arc(x, y, r, 0, 7);
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    width = canvas.clientWidth; height = canvas.clientHeight;
    canvas.width = width * ratio; canvas.height = height * ratio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const ink = color("--ink"), soft = color("--soft");
    if (edges && edges.checked) {
      context.strokeStyle = soft; context.globalAlpha = 0.25; context.lineWidth = 0.7;
      context.beginPath();
      for (let e = 0; e < data.edges.length; e += 2) {
        const a = data.edges[e], b = data.edges[e + 1];
        if (!visible(a) || !visible(b)) continue;
        context.moveTo(...place(a)); context.lineTo(...place(b));
      }
      context.stroke();
    }
    const base = Math.max(2.2, Math.min(5, 90 / Math.sqrt(data.points.length))) * Math.min(2, Math.sqrt(zoom));
    data.points.forEach((point, i) => {
      if (!visible(i)) return;
      const [x, y] = place(i);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) return;
      const known = data.classes[point.label];
      context.globalAlpha = known ? 0.85 : 1;
      if (known) {
        context.fillStyle = known.color;
        mark(x, y, known.shape, base); context.fill();
      } else {
        const guess = data.classes[point.predicted];
        context.fillStyle = guess ? guess.color : soft;
        mark(x, y, "circle", base + 3); context.fill();
        context.lineWidth = 2; context.strokeStyle = ink; context.stroke();
        context.fillStyle = ink; context.font = "12px sans-serif"; context.fillText(point.name, x + base + 7, y + 4);
      }
      if (explained.has(i) && known) {
        context.lineWidth = 1.3; context.strokeStyle = ink;
        mark(x, y, "circle", base + 2.5); context.stroke();
      }
    });
    context.globalAlpha = 1;
    if (at >= 0 && visible(at)) {
      const [x, y] = place(at);
      context.lineWidth = 2.5; context.strokeStyle = color("--focus");
      mark(x, y, "circle", base + 6); context.stroke();
    }
    const [across, up] = data.views[pick.value].labels;
    context.fillStyle = soft; context.font = "12px sans-serif";
    if (across) context.fillText(across, margin, height - 9);
    if (up) { context.save(); context.translate(14, height - margin); context.rotate(-Math.PI / 2); context.fillText(up, 0, 0); context.restore(); }
  }

  function line(text, kind) {
    const made = document.createElement("div");
    if (kind) made.className = kind;
    made.textContent = text;
    return made;
  }

  function describe(i) {
    const point = data.points[i];
    const name = (c) => (data.classes[c] ? data.classes[c].name : "unknown");
    const said = [point.name];
    if (point.group) said.push("group " + point.group);
    if (point.label >= 0) said.push("class " + name(point.label));
    if (point.predicted >= 0) said.push("read as " + name(point.predicted));
    if (point.nearest) said.push("nearest codes: " + point.nearest.join(", "), "distance " + point.apart + " of the usual");
    return said;
  }

  function select(i) {
    at = i;
    canvas.classList.toggle("over", i >= 0);
    hover.hidden = i < 0;
    if (i >= 0) {
      hover.replaceChildren();
      if (data.points[i].picture) {
        const picture = new Image();
        picture.src = data.points[i].picture; picture.alt = "";
        hover.append(picture);
      }
      describe(i).forEach((text) => hover.append(line(text)));
      const [x, y] = place(i);
      hover.style.left = (x > width / 2 ? Math.max(0, x - hover.offsetWidth - 14) : x + 14) + "px";
      hover.style.top = Math.max(0, Math.min(y - 20, height - hover.offsetHeight)) + "px";
    }
    draw();
  }

  function open(i) {
    shown.replaceChildren();
    if (i < 0) return;
    const template = document.querySelector(`template[data-point="${i}"]`);
    if (template) shown.append(template.content.cloneNode(true));
    else shown.append(line(describe(i).join(" · ") + (explained.size ? ". No explanation was made of this point; ringed points have one." : "."), "told"));
  }

  function nearest(x, y) {
    let best = -1, gap = 14 * 14;
    data.points.forEach((_, i) => {
      if (!visible(i)) return;
      const [px, py] = place(i);
      const d = (px - x) ** 2 + (py - y) ** 2;
      if (d <= gap) { gap = d; best = i; }
    });
    return best;
  }

  let dragged = null;
  canvas.addEventListener("pointerdown", (event) => {
    dragged = { x: event.offsetX, y: event.offsetY, left, top, moved: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (dragged && event.buttons) {
      const dx = event.offsetX - dragged.x, dy = event.offsetY - dragged.y;
      if (Math.abs(dx) + Math.abs(dy) > 4) dragged.moved = true;
      if (dragged.moved) { left = dragged.left + dx; top = dragged.top + dy; select(-1); return; }
    }
    const i = nearest(event.offsetX, event.offsetY);
    if (i !== at) select(i);
  });
  canvas.addEventListener("pointerleave", () => select(-1));
  canvas.addEventListener("click", (event) => {
    if (dragged && dragged.moved) return;
    const i = nearest(event.offsetX, event.offsetY);
    select(i); open(i);
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const wanted = Math.min(60, Math.max(1, zoom * Math.exp(-event.deltaY / 400)));
    left = event.offsetX - (event.offsetX - left) * wanted / zoom;
    top = event.offsetY - (event.offsetY - top) * wanted / zoom;
    zoom = wanted;
    if (zoom === 1) left = top = 0;
    draw();
  }, { passive: false });
  // Arrow keys go through the explained points, or through all where none is; Enter opens.
  const stops = () => (explained.size ? [...explained] : data.points.map((_, i) => i)).filter(visible);
  canvas.addEventListener("keydown", (event) => {
    const list = stops();
    if (!list.length) return;
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      const here = list.indexOf(at);
      select(list[(here < 0 ? (step > 0 ? 0 : list.length - 1) : here + step + list.length) % list.length]);
    } else if (event.key === "Enter" && at >= 0) open(at);
    else if (event.key === "Escape") { select(-1); open(-1); }
  });
  for (const key of root.querySelectorAll(".class-key")) {
    key.addEventListener("click", () => {
      const label = Number(key.dataset.class), on = hidden.delete(label);
      if (!on) hidden.add(label);
      key.setAttribute("aria-pressed", String(on));
      select(-1);
    });
  }
  function reset() {
    zoom = 1; left = top = 0;
    document.getElementById("note").textContent = data.views[pick.value].note;
    select(-1);
  }
  pick.addEventListener("change", reset);
  if (edges) edges.addEventListener("change", draw);
  tools.querySelector("[name=reset]").addEventListener("click", reset);
  window.addEventListener("resize", draw);
  tools.hidden = false;
  reset();
})();

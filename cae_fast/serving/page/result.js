// SPDX-License-Identifier: Apache-2.0
// One answer on the page: its pictures, its path, its classes. Names only ever become text.

import { makeCurve } from "./curve.js";
import { makeManifold } from "./manifold.js";
import { decode, drawHeat, greyValues, show } from "./pictures.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);
// Pictures below this side are drawn with visible pixels instead of being blurred.
const PIXELATED_BELOW = 100;
const CLASSES_LISTED = 10;
const FRAME_SECONDS = 0.09;

/** Text in an element of its own. */
export function text(name, value, className = "") {
  const made = document.createElement(name);
  made.textContent = value;
  if (className) made.className = className;
  return made;
}

/** Everything below the headline; `onTarget` is called with the class a reader picks. */
export function makeResult(onTarget) {
  let read = null;
  let stops = [];
  let map = null;
  let timer = 0;
  const curve = makeCurve($("curve"), (t) => moveTo(t));
  const manifold = makeManifold($("manifold"));
  const position = $("position");

  // Sliders of the map
  const setHeat = () => {
    const opacity = Number($("opacity").value);
    $("opacity-out").value = `${opacity} %`;
    $("case").style.setProperty("--heat", opacity / 100);
  };
  const setThreshold = () => {
    const threshold = Number($("threshold").value);
    $("threshold-out").value = `${threshold} %`;
    if (map) drawHeat(document.querySelector("#tile-saliency .heat"), map, threshold / 100);
  };
  $("opacity").addEventListener("input", setHeat);
  $("threshold").addEventListener("input", setThreshold);

  // Path
  function nearest(t) {
    let best = 0;
    stops.forEach((stop, i) => {
      if (Math.abs(stop.t - t) < Math.abs(stops[best].t - t)) best = i;
    });
    return best;
  }

  function moveTo(t) {
    if (!stops.length) return;
    const stop = stops[nearest(t)];
    position.value = String(stop.t);
    show(document.querySelector("#tile-frame canvas"), stop.picture);
    const k = words.argmax(stop.probabilities);
    const at = stop.flip ? `t = ${stop.t.toFixed(3)}, the flip` : `t = ${stop.t.toFixed(3)}`;
    const reads = k < 0 ? "" : `read as ${read.label(k)}, ${words.percent(stop.probabilities[k])}`;
    $("frame-at").textContent = at;
    $("frame-read").textContent = reads;
    position.setAttribute("aria-valuetext", `${at}, ${reads}`);
    curve.move(stop.t);
    manifold.move(stop.t);
    setBars(stop.probabilities, `at ${at}`);
  }

  const step = (by) => moveTo(stops[Math.min(Math.max(nearest(Number(position.value)) + by, 0), stops.length - 1)].t);
  position.addEventListener("input", () => { stop(); moveTo(Number(position.value)); });
  position.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 4, PageDown: -4 }[event.key];
    if (by === undefined || !stops.length) return;
    event.preventDefault();
    stop();
    step(by);
  });
  function stop() {
    clearInterval(timer);
    timer = 0;
    $("play").textContent = "Play";
    $("play").setAttribute("aria-pressed", "false");
  }
  $("play").addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (nearest(Number(position.value)) === stops.length - 1) moveTo(0);
    $("play").textContent = "Pause";
    $("play").setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      step(1);
      if (nearest(Number(position.value)) === stops.length - 1) stop();
    }, 1000 * FRAME_SECONDS);
  });
  const jump = (id, t) => $(id).addEventListener("click", () => { stop(); moveTo(t()); });
  jump("to-start", () => 0);
  jump("to-flip", () => read.flip);
  jump("to-exemplar", () => read.exemplarAt);

  // Classes
  function listedClasses() {
    const first = words.drawnClasses(read).map(({ k }) => k);
    const likely = read.atImage
      .map((p, k) => ({ k, p: Math.max(p ?? 0, read.atCounterfactual[k] ?? 0) }))
      .sort((a, b) => b.p - a.p)
      .map(({ k }) => k);
    return [...new Set([...first, ...likely])].slice(0, Math.max(CLASSES_LISTED, first.length)).sort((a, b) => a - b);
  }

  function makeBars() {
    const kinds = new Map(words.drawnClasses(read).map(({ k, kind }) => [k, kind]));
    const rows = listedClasses().map((k) => {
      const row = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.className = `bar ${kinds.get(k) ?? "passed"}`;
      button.dataset.k = String(k);
      const track = document.createElement("span");
      track.className = "track";
      track.append(document.createElement("i"));
      const here = read.atImage[k];
      if (Number.isFinite(here)) {
        const tick = document.createElement("b");
        tick.style.left = `${100 * here}%`;
        track.append(tick);
      }
      button.append(text("span", read.label(k), "label"), track, text("span", "", "value"));
      const role = k === read.source ? " (source)" : k === read.target ? " (target)" : "";
      button.title = `Make ${read.label(k)} the target${role}`;
      button.disabled = k === read.source;
      button.addEventListener("click", () => onTarget(k));
      row.append(button);
      return row;
    });
    $("bars").replaceChildren(...rows);
  }

  function setBars(probabilities, where) {
    $("classes-at").textContent = where;
    for (const bar of $("bars").querySelectorAll("button")) {
      const p = probabilities[Number(bar.dataset.k)];
      bar.querySelector("i").style.width = Number.isFinite(p) ? `${100 * p}%` : "0";
      bar.querySelector(".value").textContent = words.percent(p);
    }
  }

  function setLegend(classes) {
    const role = { source: "source", target: read.target >= 0 ? "target" : "reached", passed: "passed through" };
    $("legend").replaceChildren(
      "Probability of ",
      ...classes.map(({ k, kind }) => {
        const key = text("span", "", `key ${kind}`);
        key.append(document.createElement("i"), `${read.label(k)} `, text("small", role[kind]));
        return key;
      }),
    );
  }

  function tile(id, bitmap, note) {
    const figure = $(id);
    figure.hidden = !bitmap;
    if (!bitmap) return;
    show(figure.querySelector("canvas"), bitmap);
    figure.querySelector("small").textContent = note;
  }

  function setTiles(pictures, mapName) {
    const { status } = read;
    const changed = status === "flipped" || status === "not_flipped";
    const decoded = !words.UNSEEN.has(status) && status !== "already_target";
    const sure = (k) => (k < 0 ? "" : `read as ${read.label(k)}, ${words.percent(read.atImage[k])}`);
    tile("tile-image", status === "rejected" ? null : pictures.image, sure(read.source));
    tile(
      "tile-reconstruction",
      decoded ? pictures.reconstruction : null,
      changed ? "t = 0, by the model" : `t = 0, read as ${read.label(read.reached)}`,
    );
    const t = words.shownPosition(read);
    const at = t === null ? "" : `t = ${t.toFixed(3)}, `;
    const so = read.reached < 0 ? "" : `read as ${read.label(read.reached)}, ${words.percent(read.atCounterfactual[read.reached])}`;
    const not = status === "not_flipped" ? "; not a counterfactual" : "";
    tile("tile-counterfactual", changed ? pictures.counterfactual : null, `${at}${so}${not}`);
    const name = status === "not_flipped" ? "Nearest point" : "Counterfactual";
    document.querySelector("#tile-counterfactual figcaption span").textContent = name;
    document.querySelector("#tile-counterfactual canvas").setAttribute("aria-label", name);
    map = null;
    const shownMap = decoded && pictures.saliency && pictures.image;
    $("tile-saliency").hidden = !shownMap;
    $("overlay-sliders").hidden = !shownMap;
    if (!shownMap) return;
    const shows = mapName ?? "Where it changes";
    $("map-name").textContent = shows;
    document.querySelector("#tile-saliency .heat").setAttribute("aria-label", `${shows}, over the image`);
    show(document.querySelector("#tile-saliency .under"), pictures.image);
    const { width, height } = pictures.saliency;
    map = { values: greyValues(pictures.saliency), width, height };
    setHeat();
    setThreshold();
  }

  async function decodeAll(answer) {
    const images = answer.images ?? {};
    const names = ["image", "reconstruction", "counterfactual", "saliency"];
    const [plain, frames] = await Promise.all([
      Promise.all(names.map((name) => decode(images[name]))),
      Promise.all((answer.frames?.png ?? []).map(decode)),
    ]);
    return { ...Object.fromEntries(names.map((name, i) => [name, plain[i]])), frames };
  }

  function setStops(pictures) {
    stops = read.frames.map((frame, i) => ({ ...frame, picture: pictures.frames[i] ?? null, flip: false }));
    if (read.flip !== null && pictures.counterfactual) {
      // The counterfactual takes its own place among the frames.
      stops = stops.filter((frame) => Math.abs(frame.t - read.flip) > 1e-6);
      stops.push({ t: read.flip, probabilities: read.atCounterfactual, picture: pictures.counterfactual, flip: true });
    }
    stops = stops.filter((frame) => frame.picture).sort((a, b) => a.t - b.t);
  }

  return {
    /** Shows an answer; resolves once its pictures are drawn. `stale()` says it is too late. */
    async show(answer, name, stale) {
      const pictures = await decodeAll(answer);
      if (stale()) return;
      stop();
      read = words.readAnswer(answer);
      const warned = words.WARNED.has(read.status);
      const small = (pictures.image?.width ?? PIXELATED_BELOW) < PIXELATED_BELOW;
      $("shown").className = `${warned ? "warn" : ""} ${small ? "pixels" : ""}`;
      $("case").dataset.status = read.status;
      $("headline").replaceChildren(...words.heading(read).map((part) => text("span", part.text, part.kind)));
      $("image-name").textContent = name;
      $("badge").textContent = words.STATUS_LABELS[read.status] ?? read.status;
      $("says").textContent = words.sentence(read) || String(answer.status_text ?? "");
      setTiles(pictures, answer.map);
      setStops(pictures);
      makeBars();
      const classes = words.drawnClasses(read);
      const walk = stops.length > 1 && read.status !== "already_target" && !words.UNSEEN.has(read.status);
      $("path-section").hidden = !walk;
      $("to-flip").hidden = read.flip === null;
      $("empty").hidden = true;
      $("shown").hidden = false;
      if (walk) {
        setLegend(classes);
        curve.show(read, classes, words.sentence(read));
        moveTo(words.shownPosition(read) ?? 0);
      } else {
        stops = [];
        setBars(read.atImage, "of the image");
      }
    },
    /** Shows the bank's codes below the answer, or a sentence instead. */
    showManifold(bank) {
      const goal = read.target >= 0 ? read.target : read.reached;
      $("manifold").hidden = !bank;
      $("manifold-legend").hidden = !bank;
      if (!bank) {
        $("manifold-note").textContent = "The server has no map of this model's codes.";
        return;
      }
      const marks = [["ring", "this image"], ["line", "its path"], ["star", "its exemplar"]];
      const path = (read.code?.path ?? []).length > 1;
      $("manifold-legend").replaceChildren(
        ...marks.slice(0, path ? 3 : 1).map(([kind, name]) => {
          const key = text("span", "", `key ${kind}`);
          key.append(document.createElement("i"), name);
          return key;
        }),
      );
      const share = (bank.explained ?? []).filter(Number.isFinite).reduce((sum, part) => sum + part, 0);
      const axes = Array.isArray(bank.axes) ? bank.axes.join(" and ") : String(bank.axes ?? "");
      $("manifold-note").textContent =
        `Each point is an image of the bank${axes ? `; axes: ${axes}` : ""}` +
        `${share > 0 ? `, together ${words.percent(share)} of the variance` : ""}.`;
      $("manifold").setAttribute(
        "aria-label",
        `Scatter plot of the bank's class codes. The image's code and its path from ` +
          `${read.label(read.source)} towards ${goal >= 0 ? read.label(goal) : "another class"} are marked.`,
      );
      manifold.show(bank.points ?? [], read, goal);
      manifold.move(Number(position.value));
    },
    /** The answer shown, as plain values, or null. */
    get read() {
      return read;
    },
  };
}

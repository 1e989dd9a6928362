// SPDX-License-Identifier: Apache-2.0
// The page: which image, which question, one request, one answer.

import * as api from "./api.js";
import { decode, show } from "./pictures.js";
import { makeResult, text } from "./result.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);
const TRIES_WHEN_BUSY = 6;
const SAMPLES_SHOWN = 24;
// Frames of large pictures are costly to decode and to send.
const frameCount = (model) => (model.image_size > 128 ? 17 : 33);

const state = { models: [], model: null, image: null, asked: null, answer: null, running: null };
const manifolds = new Map();
const result = makeResult((k) => {
  $("target").value = String(k);
  run();
});

// Messages
let again = null;
function showError(error, retry) {
  if (error.status === 401) {
    $("token-form").hidden = false;
    again = retry;
    $("token").focus();
    return;
  }
  $("message-text").textContent = error.message;
  $("message-detail").textContent = error.requestId ? `Request ${error.requestId}` : "";
  $("message").hidden = false;
  $("retry").hidden = !retry;
  again = retry;
}
function hideError() {
  $("message").hidden = true;
  $("token-form").hidden = true;
}
$("dismiss").addEventListener("click", () => {
  const waiting = state.running;
  hideError();
  if (waiting?.wake) cancel();
});
$("retry").addEventListener("click", () => {
  hideError();
  if (state.running?.wake) state.running.wake();
  else again?.();
});
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.setToken($("token").value);
  hideError();
  again?.();
});

// Models and samples
async function start() {
  try {
    state.models = await api.listModels();
  } catch (error) {
    showError(error, start);
    return;
  }
  if (!state.models.length) {
    showError(new api.ServiceError("The server offers no model."), start);
    return;
  }
  $("model").replaceChildren(...state.models.map(({ name }) => new Option(name, name)));
  $("model-field").hidden = state.models.length < 2;
  chooseModel();
}

function chooseModel() {
  state.model = state.models.find(({ name }) => name === $("model").value) ?? state.models[0];
  const names = state.model.class_names;
  $("target").replaceChildren(
    new Option("nearest other class", ""),
    new Option("any other class", "any"),
    ...names.map((name, k) => new Option(name, String(k))),
  );
  $("target").disabled = false;
  const paths = state.model.paths ?? ["line"];
  $("path").replaceChildren(...paths.map((name) => new Option(name, name)));
  $("path-field").hidden = paths.length < 2;
  listSamples();
}

async function listSamples() {
  const { model } = state;
  const names = (model.samples ?? []).slice(0, SAMPLES_SHOWN);
  $("samples-box").hidden = !names.length;
  const buttons = names.map((file, i) => {
    const name = file.replace(/\.\w+$/, "");
    const button = document.createElement("button");
    button.type = "button";
    button.title = name;
    button.setAttribute("aria-label", `Sample ${name}`);
    button.setAttribute("aria-pressed", "false");
    button.append(document.createElement("canvas"));
    button.addEventListener("click", () => {
      if (button.blob) chooseImage(button.blob, name, button);
    });
    api.fetchSample(model.name, i).then(
      async (blob) => {
        show(button.firstChild, await decode(blob));
        button.classList.toggle("pixels", button.firstChild.width < 100);
        button.blob = blob;
      },
      () => button.remove(),
    );
    return button;
  });
  $("samples").replaceChildren(...buttons);
}

$("model").addEventListener("change", () => {
  chooseModel();
  run();
});
for (const id of ["target", "tolerance", "saliency", "path"]) $(id).addEventListener("change", () => run());
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});

// Images
async function chooseImage(blob, name, button = null) {
  for (const other of $("samples").children) other.setAttribute("aria-pressed", String(other === button));
  state.image = { blob, name };
  $("explain").disabled = false;
  $("preview").hidden = false;
  $("preview-name").textContent = name;
  $("preview-canvas").hidden = true;
  run();
  try {
    const bitmap = await decode(blob);
    if (state.image.blob !== blob) return;
    show($("preview-canvas"), bitmap);
    $("preview-canvas").classList.toggle("pixels", bitmap.width < 100);
    $("preview-canvas").hidden = false;
  } catch {
    // What this browser cannot draw (DICOM, TIFF) the server may still read.
  }
}

function firstFile(list) {
  const file = [...(list ?? [])].find((item) => item instanceof File);
  if (file) chooseImage(file, file.name || "pasted image");
  return Boolean(file);
}
$("file").addEventListener("change", () => {
  firstFile($("file").files);
  $("file").value = "";
});
addEventListener("paste", (event) => {
  if (firstFile(event.clipboardData?.files)) event.preventDefault();
});
let depth = 0;
const veil = (shown) => { $("veil").hidden = !shown; };
const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragenter", (event) => { if (carriesFile(event)) { depth += 1; veil(true); } });
addEventListener("dragleave", (event) => { if (carriesFile(event)) { depth -= 1; veil(depth > 0); } });
addEventListener("dragover", (event) => { if (carriesFile(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!carriesFile(event)) return;
  event.preventDefault();
  depth = 0;
  veil(false);
  firstFile(event.dataTransfer.files);
});

// The question
function question() {
  return {
    image: state.image.blob,
    name: state.image.name,
    model: state.model.name,
    target: $("target").value,
    tolerance: $("tolerance").value,
    saliency: $("saliency").value,
    path: $("path").value || "line",
    frames: frameCount(state.model),
  };
}

function setBusy(busy) {
  $("working").hidden = !busy;
  $("result").setAttribute("aria-busy", String(busy));
  $("shown").classList.toggle("stale", busy);
}

function cancel() {
  state.running?.abort.abort();
  state.running = null;
  setBusy(false);
}
$("cancel").addEventListener("click", () => { hideError(); cancel(); });

/** Waits, counting down, until the time is over or the reader wants it now. */
async function waitBusy(running, seconds) {
  let left = Math.ceil(seconds);
  const say = () => {
    $("message-text").textContent = `The server is busy. Trying again in ${left} s.`;
  };
  $("message-detail").textContent = "Your image has not been lost; nothing has to be chosen again.";
  $("retry").hidden = false;
  $("message").hidden = false;
  say();
  await new Promise((resolve) => {
    const end = () => { clearInterval(timer); clearTimeout(limit); resolve(); };
    const timer = setInterval(() => { left = Math.max(left - 1, 0); say(); }, 1000);
    const limit = setTimeout(end, 1000 * seconds);
    running.wake = end;
    running.abort.signal.addEventListener("abort", end);
  });
  running.wake = null;
  if (state.running === running) hideError();
}

async function ask(running, asked) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await api.explain(asked, running.abort.signal);
    } catch (error) {
      if (error.status !== 503 || tries >= TRIES_WHEN_BUSY || state.running !== running) throw error;
      await waitBusy(running, error.retryAfter ?? Math.min(2 ** tries, 20));
      if (state.running !== running) throw new DOMException("", "AbortError");
    }
  }
}

async function run() {
  if (!state.image || !state.model) return;
  cancel();
  hideError();
  const running = { abort: new AbortController(), wake: null };
  state.running = running;
  const asked = question();
  const stale = () => state.running !== running;
  setBusy(true);
  try {
    const answer = await ask(running, asked);
    await result.show(answer, asked.name, stale);
    if (stale()) return;
    Object.assign(state, { asked, answer });
    showFacts(answer);
    $("live").textContent = $("says").textContent;
    bringIntoView();
    $("explain").textContent = "Explain again";
    setBusy(false);
    state.running = null;
    const bank = await bankOf(asked.model);
    if (state.answer === answer) result.showManifold(bank);
  } catch (error) {
    if (stale() || error.name === "AbortError") return;
    state.running = null;
    setBusy(false);
    showError(error instanceof api.ServiceError ? error : new api.ServiceError("The answer could not be shown."), run);
    if (!(error instanceof api.ServiceError)) console.error(error);
  }
}

/** Where the answer is below the window (small screens), goes there. */
function bringIntoView() {
  if ($("case").getBoundingClientRect().top < 0.6 * innerHeight) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("case").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
}

/** The model's bank in two dimensions, asked for once; null where the server has none. */
async function bankOf(model) {
  if (!manifolds.has(model)) {
    manifolds.set(model, await api.fetchManifold(model).catch(() => null));
  }
  const bank = manifolds.get(model);
  if (!bank) manifolds.delete(model);
  return bank;
}

function showFacts(answer) {
  const read = words.readAnswer(answer);
  const facts = [["Decodes", String(read.evaluations)]];
  if (read.bracket) facts.push(["Bracket", read.bracket.map((t) => t.toFixed(4)).join(" to ")]);
  if (read.exemplars.length && read.status !== "already_target") {
    facts.push(["Exemplar", read.exemplars.slice(0, 3).join(", ")]);
  }
  const { seconds = {} } = answer;
  facts.push(["Explained in", words.duration(seconds.explain)]);
  if (Number.isFinite(seconds.queue)) facts.push(["Waited", words.duration(seconds.queue)]);
  facts.push(["Model", answer.model], ["Request", answer.request_id]);
  $("facts").replaceChildren(
    ...facts.map(([name, value]) => {
      const pair = document.createElement("div");
      pair.append(text("dt", name), text("dd", String(value ?? "unknown")));
      return pair;
    }),
  );
}

// Keeping it
function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
const stem = () => (state.asked.name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}._-]+/gu, "_") || "image").slice(0, 80);
$("save-report").addEventListener("click", async () => {
  const button = $("save-report");
  button.disabled = true;
  try {
    save(await api.report(state.asked), `${stem()}_report.html`);
  } catch (error) {
    showError(error, () => button.click());
  } finally {
    button.disabled = false;
  }
});
$("save-json").addEventListener("click", () => {
  save(new Blob([JSON.stringify(state.answer, null, 1)], { type: "application/json" }), `${stem()}.json`);
});

start();

// SPDX-License-Identifier: Apache-2.0
// Requests to the service. Every address is relative, so that the page works below any prefix.

/** A refusal by the service, or a network that failed (status 0). */
export class ServiceError extends Error {
  constructor(message, { status = 0, requestId = "", retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.requestId = requestId;
    this.retryAfter = retryAfter;
  }
}

let token = "";

/** Sets the bearer token of all further requests; kept in this tab's memory only. */
export function setToken(value) {
  token = value;
}

async function request(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The server cannot be reached.");
  }
  if (response.ok) return response;
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  throw new ServiceError(
    typeof said.message === "string" ? said.message : `The server answered ${response.status}.`,
    {
      status: response.status,
      requestId: String(said.request_id ?? response.headers.get("X-Request-Id") ?? ""),
      retryAfter: Number.isFinite(seconds) ? Math.min(Math.max(seconds, 0.5), 60) : null,
    },
  );
}

async function json(path, options) {
  const response = await request(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The server's answer is no valid JSON.", { status: response.status });
  }
}

const named = (model) => `models/${encodeURIComponent(model)}`;

/** The models on offer: `[{name, class_names, image_size, in_channels, samples}]`. */
export async function listModels() {
  return (await json("v1/models")).models;
}

/** A bundled sample of a model, as a PNG blob. */
export async function fetchSample(model, index) {
  return (await request(`${named(model)}/samples/${index}`)).blob();
}

/** Codes of the model's bank in two dimensions. */
export async function fetchManifold(model) {
  return json(`${named(model)}/manifold`);
}

function form(question) {
  const data = new FormData();
  data.append("image", question.image, question.name);
  data.append("model", question.model);
  if (question.target !== "") data.append("target", question.target);
  data.append("tolerance", question.tolerance);
  data.append("saliency", question.saliency);
  data.append("path", question.path);
  data.append("name", question.name);
  data.append("frames", String(question.frames));
  return data;
}

/**
 * Asks for an explanation.
 *
 * `question` is {image: Blob, name, model, target: "" for the service's choice, tolerance,
 * saliency: kind of map, path, frames}.
 */
export async function explain(question, signal) {
  const body = form(question);
  body.append("format", "json");
  return json("explain", { method: "POST", body, signal });
}

/** The same explanation as a self-contained HTML report, as a blob. */
export async function report(question) {
  const body = form(question);
  body.append("format", "html");
  return (await request("explain", { method: "POST", body })).blob();
}

// SPDX-License-Identifier: Apache-2.0
// An answer of the service as plain values, and what its status means in words. The sentences are
// those of the report (report/case.py).

export const STATUS_LABELS = {
  flipped: "Flipped",
  not_flipped: "Not a counterfactual",
  already_target: "Already the target class",
  reconstruction_flips: "Reconstruction flips",
  non_finite: "Not finite",
  rejected: "Rejected",
};
/** Statuses that show no counterfactual and have to say so. */
export const WARNED = new Set(["not_flipped", "reconstruction_flips", "non_finite", "rejected"]);
/** Statuses with nothing decoded. */
export const UNSEEN = new Set(["non_finite", "rejected"]);

/** A probability for people: "97 %", with a decimal near the ends, "unknown" for null. */
export function percent(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "unknown";
  const share = 100 * value;
  if ((share > 0 && share < 1) || (share > 99 && share < 100)) {
    const clipped = Math.min(Math.max(share, 0.1), 99.9);
    return `${share < 0.1 ? "<" : share > 99.9 ? ">" : ""}${clipped.toFixed(1)} %`;
  }
  return `${share.toFixed(0)} %`;
}

/** A duration in seconds for people. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "unknown";
  return seconds < 1 ? `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;
}

const index = (value) => {
  const number = value !== null && typeof value === "object" ? value.index : value;
  return Number.isInteger(number) ? number : -1;
};

/** The answer with classes as indices (-1: none) and every list in place. */
export function readAnswer(answer) {
  const names = answer.class_names ?? [];
  const finite = (value) => (Number.isFinite(value) ? value : null);
  const bracket = (answer.bracket ?? []).map(finite);
  return {
    status: answer.status,
    names,
    source: index(answer.source_class),
    target: index(answer.target_class),
    reached: index(answer.reached_class),
    reconstructed: index(answer.reconstructed_class),
    secondPath: answer.second_path === true,
    flip: finite(answer.t_flip),
    bracket: bracket.length === 2 && !bracket.includes(null) ? bracket : null,
    evaluations: answer.evaluations ?? 0,
    atImage: answer.probabilities_source ?? [],
    atCounterfactual: answer.probabilities_counterfactual ?? [],
    path: zip(answer.path),
    frames: zip(answer.frames),
    exemplars: (answer.exemplar?.names ?? []).filter((name) => name),
    exemplarAt: answer.exemplar?.t ?? 1,
    code: answer.code ?? null,
    reason: answer.meta?.reason ?? "",
    label: (k) => (k >= 0 ? String(names[k] ?? k) : "unknown"),
  };
}

/** Points [{t, probabilities}] in order of t. */
function zip(part) {
  const probabilities = part?.probabilities ?? [];
  return (part?.t ?? [])
    .map((t, i) => ({ t, probabilities: probabilities[i] ?? [] }))
    .filter(({ t }) => Number.isFinite(t));
}

/** Class with the largest finite probability, -1 without one. */
export function argmax(probabilities) {
  let best = -1;
  probabilities.forEach((p, k) => {
    if (Number.isFinite(p) && (best < 0 || p > probabilities[best])) best = k;
  });
  return best;
}

/** Position of the reported point, also where nothing flipped; null where there is none. */
export function shownPosition(read) {
  if (read.flip !== null) return read.flip;
  if (read.status !== "not_flipped" || !read.path.length) return null;
  const towards = ({ probabilities }) =>
    read.target >= 0 ? probabilities[read.target] ?? -1 : -(probabilities[read.source] ?? 2);
  return read.path.reduce((best, point) => (towards(point) > towards(best) ? point : best)).t;
}

/** Heading as parts [{text, kind}]; kind "from", "to" or "". */
export function heading(read) {
  const source = { text: read.label(read.source), kind: "from" };
  if (read.status === "flipped" || read.status === "reconstruction_flips") {
    return [source, { text: " → ", kind: "" }, { text: read.label(read.reached), kind: "to" }];
  }
  if (read.status === "not_flipped") {
    const target = read.target >= 0 ? read.label(read.target) : "another class";
    return [source, { text: `, not ${target}`, kind: "" }];
  }
  return read.source >= 0 ? [source] : [{ text: "No explanation", kind: "" }];
}

/** What a second path is one for; "" of a first one. */
function secondly(read) {
  if (!read.secondPath) return "";
  const own = `“${read.label(read.source)}”`;
  const begins = read.path.find(({ t }) => t === 0);
  return read.reconstructed !== read.source && begins && argmax(begins.probabilities) === read.source
    ? ` Decoded from its own codes the image is read as “${read.label(read.reconstructed)}”, so the ` +
        `path begins at a code near by that is read as ${own}.`
    : " Towards its nearest exemplars nothing flips, so the path leads to others, from the middle of " +
        "their class.";
}

/** What the image is read as just before its flip, where that is a third class. */
function passedBefore(read) {
  const [last] = read.path.filter(({ t }) => t < read.flip - 1e-9).sort((a, b) => b.t - a.t);
  if (!last?.probabilities.every(Number.isFinite)) return undefined;
  const index = argmax(last.probabilities);
  return index === read.source ? undefined : read.label(index);
}

/** What happened to the image, in one or two plain sentences. */
export function sentence(read) {
  const source = `“${read.label(read.source)}”`;
  const reached = `“${read.label(read.reached)}”`;
  const target = read.target >= 0 ? `“${read.label(read.target)}”` : "another class";
  switch (read.status) {
    case "flipped": {
      const passed = passedBefore(read);
      const yet = passed === undefined ? "it does not yet." : `not yet, but “${passed}”.`;
      return (
        `The classifier reads the image as ${source}. On the path towards the exemplar it ` +
        `changes its mind at t = ${read.flip?.toFixed(3)}: from there it says ${reached}` +
        (read.bracket ? `, and at ${read.bracket[0].toFixed(3)} ${yet}` : ".") +
        secondly(read)
      );
    }
    case "not_flipped": {
      const t = shownPosition(read);
      const nearest = read.path.find((point) => point.t === t);
      const best = read.target >= 0 ? nearest?.probabilities[read.target] : undefined;
      const closest = Number.isFinite(best) ? `, where it gives ${target} ${percent(best)}` : "";
      return (
        `Not a counterfactual: at no evaluated point of the path does the classifier say ` +
        `${target}. What is shown is the nearest it came${closest}.${secondly(read)}`
      );
    }
    case "already_target":
      return `The classifier already reads the image as ${target}; there is nothing to change.`;
    case "reconstruction_flips":
      return (
        `The classifier reads the image as ${source}, but its mere reconstruction (t = 0) already ` +
        `as ${reached}. The map shows what the reconstruction changed.`
      );
    case "non_finite":
      return (
        "Classifier outputs, codes or decoded pixels were not finite numbers (NaN or infinity), " +
        "so nothing can be said about this image."
      );
    case "rejected":
      return `The input was refused${read.reason ? `: ${read.reason}` : ""}.`;
    default:
      return "";
  }
}

/** Classes with a curve, as [{k, kind}]: source, target (or reached), those passed through. */
export function drawnClasses(read) {
  const goal = read.target >= 0 ? read.target : read.reached;
  const drawn = read.source >= 0 ? [{ k: read.source, kind: "source" }] : [];
  if (goal >= 0 && goal !== read.source) drawn.push({ k: goal, kind: "target" });
  const known = new Set(drawn.map(({ k }) => k));
  const passed = new Set([...read.path, ...read.frames].map((point) => argmax(point.probabilities)));
  for (const k of [...passed].sort((a, b) => a - b)) {
    if (k >= 0 && !known.has(k)) drawn.push({ k, kind: "passed" });
  }
  return drawn;
}

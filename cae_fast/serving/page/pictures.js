// SPDX-License-Identifier: Apache-2.0
// PNG bytes to canvases, and the map of changes with its colours. The page's policy forbids data:
// addresses, so that pictures never become <img>.

/** Blob of a base64 PNG. */
function pngBlob(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return new Blob([bytes], { type: "image/png" });
}

/** Decoded picture of a base64 PNG or a blob; null for nothing. */
export async function decode(source) {
  if (!source) return null;
  const blob = typeof source === "string" ? pngBlob(source) : source;
  return createImageBitmap(blob, { colorSpaceConversion: "none" });
}

/** Shows a bitmap on a canvas at its own resolution; null clears it. */
export function show(canvas, bitmap) {
  canvas.width = bitmap?.width ?? 1;
  canvas.height = bitmap?.height ?? 1;
  if (bitmap) canvas.getContext("2d").drawImage(bitmap, 0, 0);
}

// The report's "inferno" ramp, from the same anchors in OKLCh (colors.py):
// [position, lightness, chroma, hue in degrees].
const ANCHORS = [
  [0.0, 0.08, 0.02, 290],
  [0.25, 0.31, 0.14, 305],
  [0.5, 0.54, 0.19, 375],
  [0.75, 0.76, 0.17, 415],
  [1.0, 0.97, 0.08, 465],
];

/** OKLab (Ottosson, 2020) in polar form to gamma-encoded sRGB bytes, clipped. */
function oklch(lightness, chroma, hue) {
  const a = chroma * Math.cos(hue);
  const b = chroma * Math.sin(hue);
  const long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const short = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
    -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
    -0.0041960863 * long - 0.7034186147 * medium + 1.707614701 * short,
  ].map((value) => {
    const linear = Math.min(Math.max(value, 0), 1);
    const encoded = linear <= 0.0031308 ? 12.92 * linear : 1.055 * linear ** (1 / 2.4) - 0.055;
    return Math.round(255 * encoded);
  });
}

/** The ramp as 257 colours [r, g, b]. */
export const HEAT = Array.from({ length: 257 }, (_, i) => {
  const position = i / 256;
  const upper = Math.max(1, ANCHORS.findIndex(([at]) => at >= position));
  const [low, high] = [ANCHORS[upper - 1], ANCHORS[upper]];
  const weight = (position - low[0]) / (high[0] - low[0]);
  const [lightness, chroma, hue] = [1, 2, 3].map((j) => low[j] + (high[j] - low[j]) * weight);
  return oklch(lightness, chroma, (hue * Math.PI) / 180);
});

/** Values [H * W] in 0..255 of a grey bitmap. */
export function greyValues(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  return Uint8Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);
}

/**
 * Draws a map as a see-through layer.
 *
 * Opacity is the square root of what exceeds the threshold, as in the report: places the map does
 * not speak of look as they do in the image.
 *
 * @param canvas where to draw.
 * @param map {values: Uint8Array, width, height}.
 * @param threshold values up to this one are not shown, in [0, 1).
 */
export function drawHeat(canvas, map, threshold) {
  canvas.width = map.width;
  canvas.height = map.height;
  const pixels = new ImageData(map.width, map.height);
  map.values.forEach((byte, i) => {
    const value = byte / 255;
    const above = Math.max(0, (value - threshold) / (1 - threshold));
    const [r, g, b] = HEAT[Math.round(value * 256)];
    pixels.data.set([r, g, b, Math.round(255 * Math.sqrt(above))], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

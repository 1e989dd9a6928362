// SPDX-License-Identifier: Apache-2.0
// Overlay opacity, threshold and status filter. The page is complete without this script.
"use strict";
(() => {
  const root = document.querySelector(".cae");
  const tools = root && root.querySelector(".tools");
  if (!tools) return;
  const heats = [...root.querySelectorAll("img.heat")];

  // A map's value is (alpha / 255) squared; see heat_pixels in pictures.py.
  const layers = heats.map((image) => {
    const canvas = document.createElement("canvas");
    canvas.className = "heat";
    canvas.setAttribute("aria-hidden", "true");
    return { image, canvas, pixels: null };
  });

  function prepare(layer) {
    const { image, canvas } = layer;
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    layer.pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  }

  function redraw(threshold) {
    for (const layer of layers) {
      if (threshold === 0) {
        layer.canvas.remove();
        layer.image.style.visibility = "";
        continue;
      }
      if (!layer.pixels) prepare(layer);
      const { canvas, pixels, image } = layer;
      const shown = new ImageData(new Uint8ClampedArray(pixels.data), pixels.width, pixels.height);
      for (let i = 3; i < shown.data.length; i += 4) {
        const value = (pixels.data[i] / 255) ** 2;
        const above = Math.max(0, (value - threshold) / (1 - threshold));
        shown.data[i] = Math.round(255 * Math.sqrt(above));
      }
      canvas.getContext("2d").putImageData(shown, 0, 0);
      image.style.visibility = "hidden";
      image.after(canvas);
    }
  }

  const opacity = tools.querySelector("[name=opacity]");
  opacity.addEventListener("input", () => root.style.setProperty("--heat", opacity.value / 100));
  const threshold = tools.querySelector("[name=threshold]");
  threshold.addEventListener("input", () => redraw(threshold.value / 100));
  const filter = tools.querySelector("[name=status]");
  if (filter) {
    filter.addEventListener("change", () => {
      for (const card of root.querySelectorAll(".case")) {
        card.hidden = filter.value !== "" && card.dataset.status !== filter.value;
      }
    });
  }
  tools.hidden = false;
})();

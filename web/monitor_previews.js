// The strip of previews, the newest first, and the picture that opens on a click.

import { api } from "../../scripts/api.js";

const MAX_SHOWN = 24;

const address = ({ filename, subfolder, type }, small) => {
  const query = new URLSearchParams({ filename, subfolder, type });
  if (small) query.set("preview", "webp;75");
  return api.apiURL(`/view?${query}`);
};

/** Show the previews in an element that is kept from one report to the next. */
export function showStrip(strip, previews, text) {
  const newest = previews.slice(-MAX_SHOWN).reverse();
  const key = newest.map((p) => `${p.step} ${p.type}/${p.subfolder}/${p.filename}`).join("\n");
  if (strip.dataset.shown === key) return;
  strip.dataset.shown = key;
  strip.replaceChildren(
    ...newest.map((preview, place) => {
      const button = document.createElement("button");
      const image = document.createElement("img");
      image.src = address(preview, true);
      image.alt = button.title = text("preview", { step: preview.step });
      const label = document.createElement("span");
      label.textContent = preview.step;
      button.append(image, label);
      button.addEventListener("click", () => openLightbox(newest, place, text));
      return button;
    }),
  );
}

/** Arrows go through the previews, Escape and a click close. */
function openLightbox(previews, place, text) {
  const before = document.activeElement;
  const box = document.createElement("div");
  box.className = "atelier-lightbox";
  box.tabIndex = -1;
  box.setAttribute("role", "dialog");
  box.setAttribute("aria-modal", "true");
  const image = document.createElement("img");
  const label = document.createElement("p");
  box.append(image, label);
  const show = (wanted) => {
    place = Math.min(previews.length - 1, Math.max(0, wanted));
    image.src = address(previews[place], false);
    image.alt = label.textContent = text("preview", { step: previews[place].step });
    box.setAttribute("aria-label", label.textContent);
  };
  const close = () => {
    box.remove();
    before?.focus?.();
  };
  box.addEventListener("click", close);
  box.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the graph has keys of its own
    if (event.key === "Escape") close();
    if (event.key === "ArrowLeft") show(place + 1); // the past is to the left
    if (event.key === "ArrowRight") show(place - 1);
  });
  show(place);
  document.body.append(box);
  box.focus();
}

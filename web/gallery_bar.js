// Above the pictures: what to show, in which order, how large.

import { button, dropDown, label, make } from "./elements.js";
import { STATES } from "./gallery_order.js";

const SMALLEST = 80;
const LARGEST = 256;
const SIZE = "LoraAtelier.Gallery.size"; // this browser's choice

export class Bar {
  /**
   * @param wanted see `arranged` in gallery_order.js; changed in place.
   * @param hooks {changed(), resize(size)}.
   */
  constructor(parent, text, scores, wanted, hooks) {
    this.text = text;
    this.wanted = wanted;
    this.element = make("div", "bar", parent);
    this.find = make("input", "find", this.element);
    this.find.type = "search";
    this.find.placeholder = text("find");
    this.find.setAttribute("aria-label", text("find"));
    this.find.addEventListener("input", () => this._set("words", this.find.value, hooks));
    const states = STATES.map((state) => [state, text(`state_${state}`)]);
    dropDown(this.element, "states", text("show"), states, (s) => this._set("state", s, hooks));
    const sorts = ["order", "name", "group"].map((sort) => [sort, text(`sort_${sort}`)]);
    sorts.splice(2, 0, ...scores.map((score) => [score, text(score)]));
    dropDown(this.element, "sorts", text("sort"), sorts, (sort) => this._set("sort", sort, hooks));
    this.reverse = button(this.element, "icon", "↓", () => {
      this._set("reverse", !wanted.reverse, hooks);
      this.reverse.textContent = wanted.reverse ? "↑" : "↓";
      this.reverse.setAttribute("aria-pressed", wanted.reverse);
    });
    this.reverse.title = text("reverse");
    this.reverse.setAttribute("aria-label", text("reverse"));
    this.shown = label("span", "shown", this.element, "");
    make("span", "room", this.element);
    this._buildSize(hooks);
  }

  count(n) {
    this.shown.textContent = this.text("shown", { n });
  }

  _set(name, value, hooks) {
    this.wanted[name] = value;
    hooks.changed();
  }

  _buildSize(hooks) {
    const slider = make("input", "size", this.element);
    Object.assign(slider, { type: "range", min: SMALLEST, max: LARGEST, step: 4 });
    slider.value = localStorage.getItem(SIZE) ?? 160;
    slider.title = this.text("size");
    slider.setAttribute("aria-label", this.text("size"));
    slider.addEventListener("input", () => {
      localStorage.setItem(SIZE, slider.value);
      hooks.resize(Number(slider.value));
    });
    hooks.resize(Number(slider.value));
  }
}

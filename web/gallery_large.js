// One picture as large as the window allows.

import { button, label, make } from "./elements.js";

export class Large {
  /** @param hooks {address(picture), describe(picture), step(by), close()}. */
  constructor(parent, text, hooks) {
    this.hooks = hooks;
    this.element = make("div", "large", parent);
    this.element.hidden = true;
    this.element.setAttribute("aria-label", text("large"));
    const bar = make("div", "row", this.element);
    this.name = make("b", "", bar);
    this.state = make("span", "state", bar);
    make("span", "room", bar);
    const close = button(bar, "icon", "✕", () => hooks.close(), text("close"));
    close.setAttribute("aria-label", text("close"));
    const stage = make("div", "stage", this.element);
    const step = (sign, by, name) => {
      const one = button(stage, "step", sign, () => hooks.step(by), text(name));
      one.setAttribute("aria-label", text(name));
    };
    step("‹", -1, "previous");
    this.image = make("img", "", stage);
    step("›", 1, "next");
    this.caption = label("p", "", this.element, "");
  }

  get isOpen() {
    return !this.element.hidden;
  }

  close() {
    this.element.hidden = true;
    this.image.removeAttribute("src");
    this.id = null;
  }

  show(picture, captions) {
    const told = this.hooks.describe(picture);
    this.element.hidden = false;
    this.element.classList.toggle("dropped", !told.kept);
    this.name.textContent = picture.name;
    this.state.textContent = told.note;
    this.caption.textContent = captions.join("\n");
    if (this.id === picture.id) return;
    this.id = picture.id;
    this.image.src = this.hooks.address(picture);
    this.image.alt = captions[0] ?? picture.name;
  }
}

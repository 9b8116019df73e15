// Beside the pictures: the current one with its captions, what to do with the selected ones, tags.

import { button, label, make } from "./elements.js";
import { tagsIn } from "./gallery_choice.js";
import { reasonText } from "./gallery_texts.js";

const MAX_TAGS = 200;
const SHOWN_DIGITS = 3;

export class Side {
  /**
   * @param hooks {curation, selection, scores, editable(), tags: Set of the tags filtered by,
   *   act(name): "keep" | "drop" | "invert" | "all", filter(tag), back()}.
   */
  constructor(parent, text, hooks) {
    this.text = text;
    this.hooks = hooks;
    this.element = make("aside", "side", parent);
    this._buildCurrent();
    this._buildBulk();
    label("h3", "", this.element, text("topTags"));
    this.tags = make("div", "tags", this.element);
  }

  show() {
    const editable = this.hooks.editable();
    const { pictures, current } = this.hooks.selection;
    this._showCurrent(current, editable);
    this.selected.textContent = this.text("selected", { n: pictures.length });
    for (const element of this.bulk) element.disabled = !editable || !pictures.length;
    this._showTags();
  }

  /** Whether the keys go into a caption. */
  get isTyping() {
    return this.captions.getRootNode().activeElement === this.captions;
  }

  focusCaption() {
    this.captions.focus();
    this.captions.setSelectionRange(this.captions.value.length, this.captions.value.length);
  }

  // Parts of the above

  _buildCurrent() {
    const { text, hooks } = this;
    this.name = make("h2", "", this.element);
    this.facts = make("div", "facts", this.element);
    const field = make("label", "field", this.element);
    label("span", "", field, text("captions"));
    this.captions = make("textarea", "", field);
    this.captions.rows = 5;
    this.captions.spellcheck = false;
    this.captions.title = text("captionsHelp");
    this.captions.placeholder = text("captionsHelp");
    this.captions.addEventListener("input", () => {
      const lines = this.captions.value.split("\n").map((line) => line.trim());
      hooks.curation.editCaptions(hooks.selection.current, lines.filter(Boolean));
    });
    this.captions.addEventListener("blur", () => {
      hooks.curation.closeStep();
      this.show();
    });
    this.captions.addEventListener("keydown", (event) => {
      const leaves = event.key === "Escape" || (event.key === "Enter" && event.ctrlKey);
      if (!leaves) return;
      event.preventDefault();
      event.stopPropagation();
      hooks.back();
    });
  }

  _buildBulk() {
    const { text, hooks } = this;
    const row = make("div", "row", this.element);
    this.selected = make("b", "selected-count", row);
    button(row, "", text("all"), () => hooks.act("all"));
    const actions = make("div", "row", this.element);
    this.bulk = ["keep", "drop", "invert"].map((name) =>
      button(actions, name, text(name), () => hooks.act(name)),
    );
    const form = make("form", "row", this.element);
    const tags = make("input", "", form);
    tags.placeholder = text("tagsForSelected");
    tags.setAttribute("aria-label", text("bulk"));
    const apply = (name) => {
      hooks.curation[name](hooks.selection.pictures, tagsIn(tags.value));
      tags.value = "";
      hooks.back();
    };
    const add = button(form, "add", text("addTags"), () => apply("addTags"));
    const remove = button(form, "remove", text("removeTags"), () => apply("removeTags"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      apply("addTags");
    });
    this.bulk.push(tags, add, remove);
  }

  _showCurrent(picture, editable) {
    const { curation, scores } = this.hooks;
    this.name.textContent = picture?.name ?? "";
    this.facts.replaceChildren();
    this.captions.disabled = !picture?.key || !editable;
    if (!picture) return;
    const value = curation.captionsOf(picture).join("\n");
    if (!this.isTyping || this.shown !== picture.id) this.captions.value = value;
    this.shown = picture.id;
    const facts = picture.width ? [`${picture.width} × ${picture.height}`] : [];
    if (!picture.key) facts.push(this.text("unreadable"));
    if (picture.role !== "train") facts.push(this.text(picture.role));
    for (const score of scores) {
      const value = picture.scores?.[score];
      if (value !== null && value !== undefined) {
        facts.push(`${this.text(score)} ${Number(value).toPrecision(SHOWN_DIGITS)}`);
      }
    }
    if (picture.group !== null) facts.push(this.text("duplicateOf", { n: picture.group + 1 }));
    if (picture.outlier) facts.push(this.text("outlier"));
    const decided = curation.isTurned(picture) ? this.text("byHand") : reasonText(this.text, picture.reason);
    const kept = this.text(curation.isKept(picture) ? "state_kept" : "state_dropped");
    facts.push(decided ? `${kept}: ${decided}` : kept);
    for (const fact of facts) label("span", "", this.facts, fact);
  }

  _showTags() {
    const counts = this.hooks.curation.tagCounts().slice(0, MAX_TAGS);
    const named = new Set(counts.map(([tag]) => tag));
    for (const tag of this.hooks.tags) if (!named.has(tag)) counts.unshift([tag, 0]);
    const key = JSON.stringify([counts, [...this.hooks.tags]]);
    if (key === this.tagsShown) return;
    this.tagsShown = key;
    this.tags.replaceChildren(
      ...counts.map(([tag, count]) => {
        const react = () => this.hooks.filter(tag);
        const element = button(null, "tag", tag, react, this.text("tagHelp"));
        element.setAttribute("aria-pressed", this.hooks.tags.has(tag));
        label("b", "", element, count);
        return element;
      }),
    );
  }
}

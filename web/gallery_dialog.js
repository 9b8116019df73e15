// The gallery over the canvas. It lives in a shadow tree: neither its style nor its keys meet
// ComfyUI's.

import { label, make } from "./elements.js";
import { Bar } from "./gallery_bar.js";
import { Foot, Head } from "./gallery_edges.js";
import { Grid } from "./gallery_grid.js";
import { press, tab } from "./gallery_keys.js";
import { Large } from "./gallery_large.js";
import { arranged } from "./gallery_order.js";
import { Selection } from "./gallery_selection.js";
import { largePicture, thumbnail } from "./gallery_server.js";
import { Side } from "./gallery_side.js";
import { STYLE } from "./gallery_style.js";
import { reasonText } from "./gallery_texts.js";

const HUE_STEP = 137.5; // degrees; neighbouring groups get colours far apart

export class GalleryDialog {
  /** @param hooks {proceed(session), save(session), cancelRun(session), obstacle(), closed()}. */
  constructor(session, text, hooks) {
    Object.assign(this, { session, text, hooks, curation: session.curation });
    this.selection = new Selection();
    this.wanted = { words: "", tags: new Set(), state: "all", sort: "order", reverse: false };
    this.host = make("div", "atelier-gallery", document.body);
    // ComfyUI's undo listens before everybody else, and leaves alone what looks like a text field.
    this.host.type = "textarea";
    this.shadow = this.host.attachShadow({ mode: "open" });
    label("style", "", this.shadow, STYLE);
    this.dialog = make("dialog", "", this.shadow);
    this.dialog.tabIndex = -1; // a click between two buttons must not give the keys to the graph
    this.dialog.setAttribute("aria-label", `${text("title")}: ${session.report.name}`);
    this._build();
    this._listen();
    this.update = () => this._changed();
    this.curation.listeners.add(this.update);
    this._changed();
    this.selection.moveTo(0);
    this.dialog.showModal();
    this.grid.element.focus();
    this._describe();
  }

  /** The server has news, or a second has gone by. */
  refresh() {
    this.head.show(this.session, this.curation.counts());
    this.foot.show(this.session, this.curation.counts(), this.hooks.obstacle());
    this._describe();
  }

  tick() {
    this.head.tick(this.session);
  }

  close() {
    if (!this.host.isConnected) return;
    this.curation.listeners.delete(this.update);
    this.curation.closeStep();
    window.removeEventListener("keydown", this.guard, true);
    this.grid.close();
    this.dialog.close();
    this.host.remove();
    this.hooks.closed();
  }

  // Building

  _build() {
    const { text, session, selection, curation } = this;
    this.head = new Head(this.dialog, text, {
      undo: () => curation.undo(),
      redo: () => curation.redo(),
      close: () => this.close(),
    });
    const main = make("div", "main", this.dialog);
    const left = make("div", "left", main);
    this.grid = new Grid(left, text("title"), {
      address: ({ id, key }) => key && thumbnail(session.report.id, id),
      describe: (picture) => this._told(picture),
      onPress: (place, event) => this._press(place, event),
      onOpen: (place) => {
        this._moveTo(place);
        this._large();
      },
    });
    this.empty = label("p", "none", left, text("none"));
    this.bar = new Bar(left, text, session.report.scores, this.wanted, {
      changed: () => this._arrange(),
      resize: (size) => this.grid.resize(size),
    });
    left.prepend(this.bar.element);
    this.side = new Side(main, text, {
      curation,
      selection,
      scores: session.report.scores,
      tags: this.wanted.tags,
      editable: () => session.editable,
      act: (name) => this._act(name),
      filter: (tag) => this._filter(tag),
      back: () => {
        this.grid.element.focus();
        this._changed();
      },
    });
    this.foot = new Foot(this.dialog, text, {
      proceed: () => this.hooks.proceed(session),
      save: () => this.hooks.save(session),
      cancelRun: () => this.hooks.cancelRun(session),
      edit: () => {
        session.editing = true;
        this.refresh();
      },
    });
    this.large = new Large(this.dialog, text, {
      address: ({ id }) => largePicture(session.report.id, id),
      describe: (picture) => this._told(picture),
      step: (by) => this._moveTo(selection.cursor + by),
      close: () => this._closeLarge(),
    });
  }

  _listen() {
    for (const type of ["keydown", "keyup", "keypress", "copy", "cut", "paste", "wheel"]) {
      this.host.addEventListener(type, (event) => event.stopPropagation());
    }
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault(); // Escape is ours: it may mean the large view or a caption
    });
    this.dialog.addEventListener("keydown", (event) => {
      const done = tab(event, this.dialog) || press(event, event.target, this._doing());
      if (done) event.preventDefault();
    });
    // A button that was disabled under the focus has given it to the page.
    this.guard = (event) => {
      if (event.composedPath().includes(this.host)) return;
      event.preventDefault();
      event.stopPropagation();
      this.grid.element.focus();
    };
    window.addEventListener("keydown", this.guard, true);
  }

  _doing() {
    const { selection, grid } = this;
    const by = (steps, range) => this._moveTo(selection.cursor + steps, range);
    return {
      move: by,
      moveRows: (rows, range) => by(rows * (this.large.isOpen ? 1 : grid.columns), range),
      movePage: (pages, range) => by(pages * grid.page * grid.columns, range),
      moveTo: (place, range) => this._moveTo(place, range),
      last: () => selection.shown.length - 1,
      toggle: () => this._toggle(),
      act: (name) => this._act(name),
      caption: () => !this.large.isOpen && this.side.focusCaption(),
      large: () => (this.large.isOpen ? this._closeLarge() : this._large()),
      close: () => (this.large.isOpen ? this._closeLarge() : this.close()),
      back: () => grid.element.focus(),
      undo: () => this.session.editable && this.curation.undo(),
      redo: () => this.session.editable && this.curation.redo(),
    };
  }

  // Doing

  _press(place, event) {
    this.grid.element.focus();
    if (event.shiftKey) this.selection.moveTo(place, true);
    else if (event.ctrlKey || event.metaKey) this.selection.switchAt(place);
    else {
      this.selection.moveTo(place);
      this._toggle();
    }
    this._describe();
  }

  _moveTo(place, range = false) {
    this.selection.moveTo(place, range);
    this.curation.closeStep();
    this.grid.reveal(this.selection.cursor);
    this._describe();
  }

  /** All of the selected to what the current one is not. */
  _toggle() {
    const { current, pictures } = this.selection;
    if (!current || !this.session.editable) return;
    const here = this.large.isOpen ? [current] : pictures;
    this.curation.keep(here, !this.curation.isKept(current));
  }

  _act(name) {
    const { selection, curation, session } = this;
    if (name === "all") selection.all();
    else if (!session.editable) return;
    else if (name === "invert") curation.invert(selection.pictures);
    else curation.keep(selection.pictures, name === "keep");
    this.grid.element.focus();
    this._describe();
  }

  _filter(tag) {
    if (!this.wanted.tags.delete(tag)) this.wanted.tags.add(tag);
    this._arrange();
  }

  _large() {
    const { current } = this.selection;
    if (!current) return;
    this.large.show(current, this.curation.captionsOf(current));
    this.grid.element.focus();
  }

  _closeLarge() {
    this.large.close();
    this.grid.element.focus();
  }

  // Showing

  _arrange() {
    this._changed();
    this.grid.reveal(this.selection.cursor);
  }

  _changed() {
    // What no longer fits the filter stays until the caption is left: or else the next letters would
    // go into the caption of another picture.
    if (!this.side.isTyping) this.selection.reorder(arranged(this.curation, this.wanted));
    this.bar.count(this.selection.shown.length);
    this.empty.hidden = this.selection.shown.length > 0;
    this.refresh();
  }

  _describe() {
    this.grid.show(this.selection.shown);
    this.side.show();
    const { current } = this.selection;
    if (!this.large.isOpen) return;
    if (current) this.large.show(current, this.curation.captionsOf(current));
    else this._closeLarge();
  }

  _told(picture) {
    const { curation, selection, text, wanted } = this;
    const kept = curation.isKept(picture);
    const why = curation.isTurned(picture) ? text("byHand") : reasonText(text, picture.reason);
    const mark = picture.outlier ? text("outlier") : "";
    const score = picture.scores?.[wanted.sort] ?? null;
    const value = score === null ? "" : `${Number(score).toPrecision(3)} · `;
    const note = kept ? mark : why || text("state_dropped");
    return {
      kept,
      edited: curation.isEdited(picture),
      selected: selection.ids.has(picture.id),
      current: selection.current?.id === picture.id,
      hue: picture.group === null ? null : Math.round(picture.group * HUE_STEP) % 360,
      group: picture.group === null ? "" : `≈ ${picture.group + 1}`,
      note,
      name: value + picture.name,
      help: `${picture.name}: ${kept ? text("state_kept") : text("state_dropped")}${
        note ? ` (${note})` : ""
      }`,
    };
  }
}

// The head of the gallery (status, counts, undo) and its foot (what it leads to).

import { duration } from "./chart_scale.js";
import { button, label, make } from "./elements.js";

/** "Waiting for you · 4:32 left", or how it ended. */
export function statusLine(session, text) {
  const left = session.secondsLeft;
  const parts = [text(session.report.status)];
  if (left !== null) parts.push(text("left", { time: duration(left) }));
  return parts.join(" · ");
}

export class Head {
  /** @param hooks {undo(), redo(), close()}. */
  constructor(parent, text, hooks) {
    this.text = text;
    const row = make("header", "", parent);
    this.title = make("h1", "", row);
    this.status = make("span", "status", row);
    this.status.setAttribute("aria-live", "off");
    make("span", "room", row);
    this.counts = make("span", "counts", row);
    this.counts.setAttribute("aria-live", "polite");
    this.undo = button(row, "icon", "↶", hooks.undo, `${text("undo")} (Ctrl+Z)`);
    this.redo = button(row, "icon", "↷", hooks.redo, `${text("redo")} (Ctrl+Y)`);
    const close = button(row, "icon close", "✕", hooks.close, `${text("close")} (Esc)`);
    this.undo.setAttribute("aria-label", text("undo"));
    this.redo.setAttribute("aria-label", text("redo"));
    close.setAttribute("aria-label", text("close"));
  }

  show(session, { all, kept }) {
    this.title.textContent = session.report.name || this.text("title");
    this.counts.textContent = this.text("before", { kept, all });
    this.undo.disabled = !session.editable || !session.curation.before.length;
    this.redo.disabled = !session.editable || !session.curation.after.length;
    this.tick(session);
  }

  tick(session) {
    this.status.dataset.status = session.report.status;
    this.status.textContent = statusLine(session, this.text);
  }
}

export class Foot {
  /** @param hooks {proceed(), save(), cancelRun(), edit()}; promises that fail are shown. */
  constructor(parent, text, hooks) {
    this.text = text;
    const row = make("footer", "", parent);
    const words = make("div", "words", row);
    this.note = make("p", "note", words);
    this.failure = make("p", "failure", words);
    this.failure.setAttribute("role", "alert");
    label("p", "keys", words, text("keys"));
    this.cancel = this._button(row, "cancel", text("cancelRun"), hooks.cancelRun);
    this.edit = this._button(row, "edit", text("edit"), hooks.edit);
    this.save = this._button(row, "save primary", text("save"), hooks.save);
    this.proceed = this._button(row, "continue primary", "", hooks.proceed);
    this.proceed.title = text("continueHelp");
  }

  show(session, { kept }, obstacle) {
    const { waiting, editing } = session;
    this.cancel.hidden = this.proceed.hidden = !waiting;
    this.edit.hidden = waiting || editing || Boolean(obstacle);
    this.save.hidden = waiting || !editing;
    this.proceed.textContent = this.text("continueWith", { kept });
    this.proceed.disabled = this.save.disabled = kept === 0;
    this.note.textContent = kept ? this._note(waiting, editing, obstacle) : this.text("nothing");
  }

  _note(waiting, editing, obstacle) {
    if (obstacle === "gone") return this.text("goneNote");
    if (obstacle) return this.text("linkedNote", { name: obstacle });
    return this.text(waiting ? "continueNote" : editing ? "saveNote" : "editNote");
  }

  _button(row, className, text, act) {
    const element = button(row, className, text, async () => {
      element.disabled = true; // until the server has answered
      this.failure.textContent = "";
      try {
        await act();
      } catch (error) {
        this.failure.textContent = this.text("failed", { error: error.message });
      }
      element.disabled = false;
    });
    return element;
  }
}

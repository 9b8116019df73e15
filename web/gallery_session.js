// One gallery as this window knows it: the server's report, what the person has decided so far, and
// whether it can still be changed. Decisions outlive the dialog, and with the window's storage a
// reload.

import { parseChoice } from "./gallery_choice.js";
import { Curation } from "./gallery_curation.js";

const DRAFT = "LoraAtelier.Gallery.draft.";
const STORE_AFTER_MS = 300;

export class Session {
  /**
   * @param report of the server, see nodes/gallery_routes.py.
   * @param saved the text of the node's widget `choice`.
   */
  constructor(report, saved) {
    // The node reads no saved choice then, and its pictures must not look as if it had.
    const choice = report.mode === "automatic" ? null : parseChoice(saved);
    this.report = report;
    this.ends = null; // when the node goes on by itself, on the clock of this page
    this.editing = false; // a gallery that is over, for the next run
    this.curation = new Curation(report.images, choice);
    if (!this.waiting && choice) this.curation.lay(choice);
    const draft = parseChoice(sessionStorage.getItem(DRAFT + report.id));
    if (this.waiting && draft) this.curation.lay(draft);
    this.curation.listeners.add(() => this._storeSoon());
    this.hear(report);
  }

  /** News of the server: a summary or a report. */
  hear(summary) {
    this.report = { ...this.report, ...summary };
    if ("seconds_left" in summary) {
      const left = summary.seconds_left;
      this.ends = left === null ? null : performance.now() + 1000 * left;
    }
    if (!this.waiting) this.forgetDraft();
  }

  get waiting() {
    return this.report.status === "waiting";
  }

  get editable() {
    return this.waiting || this.editing;
  }

  /** Seconds until the node goes on by itself; null: never, or it has. */
  get secondsLeft() {
    if (!this.waiting || this.ends === null) return null;
    return Math.max(0, (this.ends - performance.now()) / 1000);
  }

  forgetDraft() {
    clearTimeout(this.soon);
    sessionStorage.removeItem(DRAFT + this.report.id);
  }

  _storeSoon() {
    clearTimeout(this.soon);
    if (!this.waiting) return;
    this.soon = setTimeout(
      () => sessionStorage.setItem(DRAFT + this.report.id, this.curation.choice()),
      STORE_AFTER_MS,
    );
  }
}

// The gallery on the node: how it stands, a few pictures, and the way in.

import { addStyle, button, make } from "./elements.js";
import { statusLine } from "./gallery_edges.js";
import { thumbnail } from "./gallery_server.js";
import { PANEL_STYLE } from "./gallery_style.js";

const HINT_HEIGHT = 26;
const HEIGHT = 112;
const MAX_THUMBNAILS = 12;

export class GalleryPanel {
  /** @param hooks {open(session), proceed(session)}. */
  constructor(text, hooks) {
    addStyle("atelier-gallery-style", PANEL_STYLE);
    this.text = text;
    this.session = null;
    this.element = make("div", "atelier-gallery-panel empty");
    make("div", "atelier-hint", this.element).textContent = text("hint");
    this.status = make("div", "atelier-gallery-status", this.element);
    this.strip = make("div", "atelier-gallery-strip", this.element);
    this.strip.setAttribute("aria-hidden", "true");
    const row = make("div", "atelier-gallery-row", this.element);
    const open = () => hooks.open(this.session);
    this.open = button(row, "atelier-open", text("open"), open, text("openHelp"));
    this.strip.addEventListener("click", open);
    this.proceed = button(row, "atelier-continue", text("continue"), async () => {
      this.proceed.disabled = true;
      this.failure = "";
      try {
        await hooks.proceed(this.session);
      } catch (error) {
        this.failure = text("failed", { error: error.message });
      }
      this.refresh();
    });
    this.proceed.title = text("continueHelp");
  }

  /** Px the node must keep for it. */
  get minHeight() {
    return this.session ? HEIGHT : HINT_HEIGHT;
  }

  show(session) {
    this.session?.curation.listeners.delete(this.update);
    this.session = session;
    this.element.classList.toggle("empty", !session);
    if (!session) return;
    this.failure = "";
    this.update = () => this.refresh();
    session.curation.listeners.add(this.update);
    this._showStrip();
    this.refresh();
  }

  refresh() {
    const { session, text } = this;
    if (!session) return;
    const { kept, all } = session.curation.counts();
    this.element.dataset.status = session.report.status;
    this.kept = text("kept", { kept, all });
    this.proceed.hidden = !session.waiting;
    this.proceed.disabled = kept === 0;
    for (const [place, frame] of [...this.strip.children].entries()) {
      const picture = session.curation.pictures[place];
      frame.classList.toggle("dropped", !session.curation.isKept(picture));
    }
    this.tick();
  }

  tick() {
    const { session } = this;
    if (!session) return;
    const line = `${statusLine(session, this.text)} · ${this.kept}`;
    this.status.textContent = this.failure || line;
    this.status.title = this.status.textContent;
  }

  _showStrip() {
    const { report, curation } = this.session;
    this.strip.replaceChildren(
      ...curation.pictures.slice(0, MAX_THUMBNAILS).map(({ id, key }) => {
        const image = make("img");
        image.alt = "";
        image.draggable = false;
        if (key) image.src = thumbnail(report.id, id);
        return image;
      }),
    );
  }
}

// Where the keyboard is among the pictures shown, and which of them are selected.

export class Selection {
  constructor() {
    this.shown = [];
    this.cursor = 0;
    this.anchor = 0; // where a range began
    this.ids = new Set();
  }

  get current() {
    return this.shown[this.cursor] ?? null;
  }

  /** The selected pictures that are shown. */
  get pictures() {
    return this.shown.filter(({ id }) => this.ids.has(id));
  }

  /** Other pictures are shown, or in another order. A picture that is gone hands on its place. */
  reorder(shown) {
    const current = this.current;
    this.shown = shown;
    const place = current ? shown.findIndex(({ id }) => id === current.id) : -1;
    this.cursor = place >= 0 ? place : Math.max(0, Math.min(this.cursor, shown.length - 1));
    this.anchor = Math.max(0, Math.min(this.anchor, shown.length - 1));
    const present = new Set(shown.map(({ id }) => id));
    for (const id of this.ids) if (!present.has(id)) this.ids.delete(id);
    if (!this.ids.size && this.current) this.moveTo(this.cursor);
  }

  /** Select one picture, or with `range` all from where the range began. */
  moveTo(place, range = false) {
    if (!this.shown.length) return;
    this.cursor = Math.max(0, Math.min(place, this.shown.length - 1));
    if (!range) this.anchor = this.cursor;
    const [from, to] = [this.anchor, this.cursor].sort((a, b) => a - b);
    this.ids = new Set(this.shown.slice(from, to + 1).map(({ id }) => id));
  }

  /** Take one picture in or out of the selection. */
  switchAt(place) {
    this.cursor = this.anchor = place;
    const { id } = this.shown[place];
    if (!this.ids.delete(id)) this.ids.add(id);
  }

  all() {
    this.ids = new Set(this.shown.map(({ id }) => id));
  }
}

// The pictures in rows. Only the rows in sight are in the page, so that thousands scroll smoothly,
// and while the wheel flies past them no picture is asked for.

import { make } from "./elements.js";

const GAP = 8;
const LABEL_HEIGHT = 20;
const ROWS_AHEAD = 2;
const FAST = 2.5; // px in a millisecond
const REST_MS = 90;

export class Grid {
  /**
   * @param hooks {address(picture) or null, describe(picture), onPress(place, event),
   *   onOpen(place)}: describe gives {kept, edited, selected, current, note, hue, group, name,
   *   help} of a cell; its hue is null where it is in no group.
   */
  constructor(parent, label, hooks) {
    this.hooks = hooks;
    this.size = 160;
    this.pictures = [];
    this.cells = new Map(); // place -> cell
    this.spare = [];
    this.loaded = new Set(); // ids the browser has
    this.element = make("div", "grid", parent);
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "listbox");
    this.element.setAttribute("aria-multiselectable", "true");
    this.element.setAttribute("aria-label", label);
    this.ground = make("div", "ground", this.element);
    this.ground.setAttribute("role", "presentation");
    this.element.addEventListener("scroll", () => this._soon());
    this.element.addEventListener("click", (event) => this._press(event));
    this.observer = new ResizeObserver(() => this._soon());
    this.observer.observe(this.element);
  }

  close() {
    this.observer.disconnect();
    clearTimeout(this.rest);
  }

  show(pictures) {
    this.pictures = pictures;
    this._soon();
  }

  resize(size) {
    const middle = this.element.scrollTop / (this.rowHeight || 1);
    const first = Math.floor(middle) * this.columns;
    this.size = size;
    this._measure();
    this.element.scrollTop = Math.floor(first / this.columns) * this.rowHeight;
    this._soon();
  }

  /** Rows that fit, for the keys that go by pages. */
  get page() {
    return Math.max(1, Math.floor(this.element.clientHeight / this.rowHeight));
  }

  reveal(place) {
    this._measure();
    const top = Math.floor(place / this.columns) * this.rowHeight;
    const bottom = top + this.rowHeight + GAP;
    const box = this.element;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
    this._soon();
  }

  // Parts of the above

  _measure() {
    this.columns = Math.max(1, Math.floor((this.element.clientWidth - GAP) / (this.size + GAP)));
    this.rowHeight = this.size + LABEL_HEIGHT + GAP;
  }

  _soon() {
    this.frame ??= requestAnimationFrame((now) => {
      this.frame = null;
      if (this.element.isConnected) this._draw(now);
    });
  }

  _draw(now) {
    this._measure();
    const { scrollTop, clientHeight } = this.element;
    const rows = Math.ceil(this.pictures.length / this.columns);
    this.ground.style.height = `${rows * this.rowHeight + GAP}px`;
    const from = Math.max(0, Math.floor(scrollTop / this.rowHeight) - ROWS_AHEAD);
    const to = Math.ceil((scrollTop + clientHeight) / this.rowHeight) + ROWS_AHEAD;
    const begin = from * this.columns;
    const end = Math.min(this.pictures.length, to * this.columns);
    for (const [place, cell] of this.cells) {
      if (place < begin || place >= end) this._free(place, cell);
    }
    const flies = this._speed(scrollTop, now) > FAST;
    for (let place = begin; place < end; place++) this._fill(place, flies);
    clearTimeout(this.rest);
    if (flies) this.rest = setTimeout(() => this._soon(), REST_MS);
  }

  /** Px in a millisecond since the last time. */
  _speed(top, now) {
    const speed = Math.abs(top - (this.lastTop ?? 0)) / Math.max(1, now - (this.lastDraw ?? 0));
    [this.lastTop, this.lastDraw] = [top, now];
    return speed;
  }

  _free(place, cell) {
    this.cells.delete(place);
    this._forget(cell);
    cell.element.remove();
    this.spare.push(cell);
  }

  /** A request under way is dropped with it. */
  _forget(cell) {
    cell.id = null;
    cell.image.removeAttribute("src");
    cell.element.classList.remove("ready");
  }

  _fill(place, flies) {
    const picture = this.pictures[place];
    const cell = this.cells.get(place) ?? this.spare.pop() ?? this._make();
    this.cells.set(place, cell);
    if (!cell.element.isConnected) this.ground.append(cell.element);
    if (cell.id !== picture.id) {
      this._forget(cell);
      cell.id = picture.id;
    }
    const address = this.hooks.address(picture);
    if (address && !cell.image.src && (!flies || this.loaded.has(picture.id))) {
      cell.image.src = address;
    }
    this._place(cell.element, place);
    this._describe(cell, this.hooks.describe(picture), place);
  }

  _make() {
    const element = make("div", "cell");
    element.setAttribute("role", "option");
    const frame = make("div", "frame", element);
    const image = make("img", "", frame);
    image.alt = "";
    image.draggable = false;
    image.decoding = "async";
    const cell = { element, image, id: null };
    image.addEventListener("load", () => {
      this.loaded.add(cell.id);
      element.classList.add("ready");
    });
    cell.note = make("span", "note", frame);
    cell.edited = make("span", "edited", frame);
    cell.edited.textContent = "✎";
    cell.open = make("span", "open", frame);
    cell.open.textContent = "⤢";
    cell.group = make("span", "group", frame);
    cell.name = make("span", "name", element);
    return cell;
  }

  _place(element, place) {
    const [row, column] = [Math.floor(place / this.columns), place % this.columns];
    const [x, y] = [GAP + column * (this.size + GAP), GAP + row * this.rowHeight];
    element.style.transform = `translate(${x}px, ${y}px)`;
    element.style.width = `${this.size}px`;
    element.style.height = `${this.size + LABEL_HEIGHT}px`;
    element.dataset.place = place;
  }

  _describe(cell, told, place) {
    const { element } = cell;
    element.id = `cell-${place}`;
    element.classList.toggle("dropped", !told.kept);
    element.classList.toggle("selected", told.selected);
    element.classList.toggle("current", told.current);
    element.classList.toggle("grouped", told.hue !== null);
    element.style.setProperty("--group", told.hue === null ? "" : `hsl(${told.hue} 65% 50%)`);
    element.setAttribute("aria-selected", told.selected);
    element.setAttribute("aria-label", told.help);
    element.setAttribute("aria-posinset", place + 1);
    element.setAttribute("aria-setsize", this.pictures.length);
    element.title = told.help;
    cell.note.textContent = told.note;
    cell.edited.hidden = !told.edited;
    cell.group.textContent = told.group;
    cell.name.textContent = told.name;
    if (told.current) this.element.setAttribute("aria-activedescendant", element.id);
  }

  _press(event) {
    const element = event.target.closest(".cell");
    if (!element) return;
    const place = Number(element.dataset.place);
    if (event.target.closest(".open")) this.hooks.onOpen(place);
    else this.hooks.onPress(place, event);
  }
}

// What a person decides about the pictures of one gallery, with undo. Pictures with the same
// content have one key, and one decision.

import { formatChoice, keyOf, tagsIn, withTags, withoutTags } from "./gallery_choice.js";

const same = (a, b) => a.length === b.length && a.every((line, place) => line === b[place]);

export class Curation {
  /**
   * @param images of the server's report, with its preselection in `keep`.
   * @param saved the choice that the preselection came from, or null: the captions it edited stay
   *   part of every choice made here.
   */
  constructor(images, saved) {
    this.pictures = images.map((image, place) => ({ ...image, place, key: keyOf(image.digest) }));
    this.kept = new Map();
    this.captions = new Map(); // the edited ones
    this.original = new Map();
    for (const { key, keep, captions } of this.pictures) {
      if (!key) continue;
      const twin = this.kept.get(key);
      // Twins that the preselection parts are left to the rule (null) until somebody decides.
      this.kept.set(key, twin === undefined || twin === keep ? keep : null);
      this.original.set(key, captions);
    }
    this.held = new Set(Object.keys(saved?.captions ?? {}).filter((key) => this.kept.has(key)));
    for (const key of this.held) this.captions.set(key, saved.captions[key]);
    this.first = new Map(this.kept);
    this.before = []; // what undo brings back
    this.after = []; // what redo brings back
    this.listeners = new Set();
  }

  /** Lay a parsed choice over what is there; nothing to undo. */
  lay(choice) {
    for (const key of choice.keep) if (this.kept.has(key)) this.kept.set(key, true);
    for (const key of choice.drop) if (this.kept.has(key)) this.kept.set(key, false);
    for (const [key, lines] of Object.entries(choice.captions)) {
      if (this.kept.has(key)) this.captions.set(key, lines);
    }
    this._tell();
  }

  choice() {
    return formatChoice(this.kept, this.captions);
  }

  isKept(picture) {
    return this.kept.get(picture.key) ?? picture.keep;
  }

  /** Whether the person has turned the preselection round. */
  isTurned(picture) {
    return Boolean(picture.key) && this.kept.get(picture.key) !== this.first.get(picture.key);
  }

  isEdited(picture) {
    return this.captions.has(picture.key);
  }

  captionsOf(picture) {
    return this.captions.get(picture.key) ?? picture.captions;
  }

  counts() {
    const kept = this.pictures.filter((picture) => this.isKept(picture)).length;
    return { all: this.pictures.length, kept };
  }

  /** [tag, number of kept pictures with it], the most frequent first. */
  tagCounts() {
    const counts = new Map();
    for (const picture of this.pictures) {
      if (!this.isKept(picture)) continue;
      for (const tag of new Set(this.captionsOf(picture).flatMap(tagsIn))) {
        counts.set(tag, (counts.get(tag) ?? 0) + 1);
      }
    }
    return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  }

  // Decisions

  keep(pictures, keep) {
    this._change(new Map(this._keys(pictures).map((key) => [key, keep])), new Map());
  }

  invert(pictures) {
    const keys = [...new Set(this._keys(pictures))];
    this._change(new Map(keys.map((key) => [key, !this.kept.get(key)])), new Map());
  }

  /** What is typed into one caption is undone in one step. */
  editCaptions(picture, lines) {
    if (!picture.key) return;
    this._change(new Map(), new Map([[picture.key, lines]]), picture.key);
  }

  addTags(pictures, tags) {
    this._editEach(pictures, (lines) => withTags(lines, tags));
  }

  removeTags(pictures, tags) {
    this._editEach(pictures, (lines) => withoutTags(lines, tags));
  }

  undo() {
    this._restore(this.before, this.after);
  }

  redo() {
    this._restore(this.after, this.before);
  }

  /** The next key typed begins a new step of undo. */
  closeStep() {
    this.typing = null;
  }

  // Parts of the above

  _keys(pictures) {
    return pictures.map(({ key }) => key).filter(Boolean);
  }

  _editEach(pictures, edit) {
    const edited = pictures
      .filter(({ key }) => key)
      .map((picture) => [picture.key, edit(this.captionsOf(picture))]);
    this._change(new Map(), new Map(edited));
  }

  _change(kept, captions, typing = null) {
    const was = this._put(kept, captions);
    if (!was.kept.size && !was.captions.size) return;
    if (!typing || this.typing !== typing) this.before.push(was);
    this.typing = typing;
    this.after = [];
    this._tell();
  }

  _restore(from, to) {
    const step = from.pop();
    if (!step) return;
    this.typing = null;
    to.push(this._put(step.kept, step.captions));
    this._tell();
  }

  /** Set values; what they were, of those that differ. */
  _put(kept, captions) {
    const was = { kept: new Map(), captions: new Map() };
    for (const [key, keep] of kept) {
      if (this.kept.get(key) === keep) continue;
      was.kept.set(key, this.kept.get(key));
      this.kept.set(key, keep);
    }
    for (const [key, lines] of captions) {
      const now = this.captions.get(key) ?? this.original.get(key);
      if (same(now, lines)) continue;
      was.captions.set(key, now);
      const isOriginal = !this.held.has(key) && same(lines, this.original.get(key));
      if (isOriginal) this.captions.delete(key);
      else this.captions.set(key, lines);
    }
    return was;
  }

  _tell() {
    for (const listener of this.listeners) listener();
  }
}

// Which pictures the gallery shows, and in which order.

import { tagsIn } from "./gallery_choice.js";

export const STATES = ["all", "kept", "dropped", "turned", "edited", "outlier", "duplicate"];

const inState = {
  all: () => true,
  kept: (picture, curation) => curation.isKept(picture),
  dropped: (picture, curation) => !curation.isKept(picture),
  turned: (picture, curation) => curation.isTurned(picture),
  edited: (picture, curation) => curation.isEdited(picture),
  outlier: (picture) => picture.outlier,
  duplicate: (picture) => picture.group !== null,
};

/**
 * @param wanted {words, tags, state, sort, reverse}: text in name or captions; tags that all must
 *   be there; one of STATES; "order", "name", "group" or a score; whether from the other end.
 */
export function arranged(curation, wanted) {
  const words = wanted.words.trim().toLowerCase();
  const shown = curation.pictures.filter((picture) => {
    if (!inState[wanted.state](picture, curation)) return false;
    const captions = curation.captionsOf(picture);
    const text = [picture.name, ...captions].join("\n").toLowerCase();
    return text.includes(words) && hasAll(captions, wanted.tags);
  });
  return shown.sort(comparison(wanted.sort, wanted.reverse ? -1 : 1));
}

function hasAll(captions, tags) {
  if (!tags.size) return true;
  const there = new Set(captions.flatMap(tagsIn));
  return [...tags].every((tag) => there.has(tag));
}

const names = new Intl.Collator(undefined, { numeric: true });

/** What has no score, or is in no group, comes last from either end. */
function comparison(sort, sign) {
  if (sort === "order") return (a, b) => sign * (a.place - b.place);
  if (sort === "name") return (a, b) => sign * names.compare(a.name, b.name) || a.place - b.place;
  const value = sort === "group" ? ({ group }) => group : ({ scores }) => scores[sort] ?? null;
  const up = sort === "group" ? sign : -sign; // of a score, the best first
  return (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a.place - b.place;
    return up * (x - y) || a.place - b.place;
  };
}

// The choice as text: what the widget `choice` holds and the server reads. Pictures go by the first
// 16 hex digits of their content's digest. And the comma-separated tags of captions.

const VERSION = 1;
const DIGITS = 16;

export const keyOf = (digest) => (digest ? digest.slice(0, DIGITS) : null);

/** {keep: [key], drop: [key], captions: {key: [caption]}}, or null where the text holds none. */
export function parseChoice(text) {
  if (!String(text ?? "").trim()) return null;
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return null; // edited by hand; the server has the words for it
  }
  if (value?.version !== VERSION) return null;
  const { keep = [], drop = [], captions = {} } = value;
  return { keep, drop, captions };
}

/**
 * @param kept key -> true, false, or null where the node's rule decides.
 * @param captions key -> the edited captions.
 */
export function formatChoice(kept, captions) {
  const keys = [...kept.keys()].sort();
  const edited = [...captions.keys()].sort();
  return JSON.stringify({
    version: VERSION,
    keep: keys.filter((key) => kept.get(key) === true),
    drop: keys.filter((key) => kept.get(key) === false),
    captions: Object.fromEntries(edited.map((key) => [key, captions.get(key)])),
  });
}

export const tagsIn = (text) =>
  text
    .split(",")
    .map((tag) => tag.trim())
    .filter(Boolean);

const among = (tags) => {
  const wanted = new Set(tags.map((tag) => tag.toLowerCase()));
  return (tag) => wanted.has(tag.toLowerCase());
};

/** Captions (alternatives of one picture) with tags put at the end, where they are missing. */
export function withTags(captions, tags) {
  return (captions.length ? captions : [""]).map((caption) => {
    const there = among(tagsIn(caption));
    const missing = tags.filter((tag) => !there(tag));
    return missing.length ? [...tagsIn(caption), ...missing].join(", ") : caption;
  });
}

/** Captions without tags; alternatives of which nothing is left are dropped. */
export function withoutTags(captions, tags) {
  const unwanted = among(tags);
  return captions
    .map((caption) => {
      const parts = tagsIn(caption);
      const left = parts.filter((tag) => !unwanted(tag));
      return left.length === parts.length ? caption : left.join(", ");
    })
    .filter(Boolean);
}

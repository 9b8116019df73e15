// Texts in the language of ComfyUI.

/**
 * A function from the name of a text and its values to the text.
 *
 * @param tables { en, zh }: each from the name to the text, with {value} where a value goes.
 */
export function translator(tables, locale) {
  const table = String(locale ?? "").startsWith("zh") ? tables.zh : tables.en;
  return (name, values = {}) =>
    (table[name] ?? name).replace(/\{(\w+)\}/g, (_, key) => values[key] ?? "");
}

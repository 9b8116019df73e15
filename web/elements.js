// Making parts of a page. Texts go in as text, never as HTML: captions come from strangers' files.

/** An element of a class in a parent. */
export function make(tag, className, parent) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  parent?.append(element);
  return element;
}

/** The same with a text. */
export function label(tag, className, parent, text) {
  const element = make(tag, className, parent);
  element.textContent = text;
  return element;
}

/** A button with a text; `help` is its tooltip. */
export function button(parent, className, text, react, help = "") {
  const element = label("button", className, parent, text);
  element.type = "button";
  if (help) element.title = help;
  element.addEventListener("click", react);
  return element;
}

/** A drop-down of [value, text] pairs. */
export function dropDown(parent, className, name, choices, react) {
  const element = make("select", className, parent);
  element.setAttribute("aria-label", name);
  element.title = name;
  for (const [value, text] of choices) label("option", "", element, text).value = value;
  element.addEventListener("change", () => react(element.value));
  return element;
}

/** Put a style into the page, once. */
export function addStyle(id, css) {
  if (document.getElementById(id)) return;
  const element = label("style", "", document.head, css);
  element.id = id;
}

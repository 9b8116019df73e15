// The gallery's way to the server and into the node.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const ROUTE = "/atelier/galleries";
const REPEAT = "use_saved_choice";

export const thumbnail = (gallery, image) =>
  api.apiURL(`${ROUTE}/${gallery}/thumbnails/${encodeURIComponent(image)}`);

export const largePicture = (gallery, image) =>
  api.apiURL(`${ROUTE}/${gallery}/pictures/${encodeURIComponent(image)}`);

/** The answer to a request below /atelier/galleries; an Error in the server's words otherwise. */
export async function ask(path, options) {
  const answer = await api.fetchApi(`${ROUTE}${path}`, options);
  if (answer.ok) return answer.json();
  const said = await answer.text();
  throw new Error(wordsOf(said) || `${answer.status} ${answer.statusText}`);
}

function wordsOf(said) {
  try {
    const { error, message } = JSON.parse(said);
    return error ?? message;
  } catch {
    return said.slice(0, 300);
  }
}

export const sendChoice = (gallery, choice) =>
  ask(`/${gallery}/finish`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ choice }),
  });

const widgetOf = (node, name) => node?.widgets?.find((widget) => widget.name === name);

export const savedChoice = (node) => widgetOf(node, "choice")?.value ?? "";

/** What keeps a choice from being stored: "gone", the name of a linked input, or "". */
export function obstacle(node) {
  if (!node) return "gone";
  const linked = ["choice", "mode"].find((name) =>
    node.inputs?.some((input) => input.widget?.name === name && input.link != null),
  );
  return linked ?? "";
}

/** Let the node repeat a choice; false where it cannot be stored. */
export function storeChoice(node, choice) {
  if (obstacle(node)) return false;
  for (const [name, value] of [
    ["choice", choice],
    ["mode", REPEAT],
  ]) {
    const widget = widgetOf(node, name);
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
  }
  node.setDirtyCanvas?.(true, true);
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
  return true;
}

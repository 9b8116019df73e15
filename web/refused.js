// Says in words why a part of the graph was refused. ComfyUI does so when nothing can run; when the
// rest can, it runs that and only draws a red border.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { findNode } from "./graph_nodes.js";
import { translator } from "./texts.js";

const TEXTS = {
  en: { summary: "{node} was refused: it and what hangs on it did not run" },
  zh: { summary: "“{node}”未通过检查，它和后面的节点没有运行" },
};

let shown = [];

// Details are "input - message", and a node's message comes once for each input that it checks.
function messages({ errors }) {
  const texts = errors.map(({ message, details, extra_info: extra }) => {
    const input = `${extra?.input_name} - `;
    return details.startsWith(input) ? details.slice(input.length) : `${message}: ${details}`;
  });
  return [...new Set(texts)].join("\n");
}

function tell(refused) {
  const { toast } = app.extensionManager;
  for (const message of shown) toast.remove(message);
  const text = translator(TEXTS, app.ui.settings.getSettingValue("Comfy.Locale"));
  const own = Object.entries(refused).filter(([, node]) => node.class_type.startsWith("Atelier"));
  shown = own.map(([id, report]) => {
    const node = findNode(id)?.title ?? report.class_type;
    return { severity: "error", summary: text("summary", { node }), detail: messages(report) };
  });
  for (const message of shown) toast.add(message); // stays until it is closed, or the next run
}

app.registerExtension({
  name: "LoraAtelier.Refused",

  init() {
    const queue = api.queuePrompt;
    api.queuePrompt = async function (...request) {
      const answer = await queue.apply(this, request); // throws when nothing can run
      tell(answer?.node_errors ?? {});
      return answer;
    };
  },
});

// Keeps the pack's Chinese texts. Frontend 1.32 merges the texts of all packs first and then loads
// the language itself, which replaces them (Comfy-Org/ComfyUI_frontend issue 6748, mended by pull
// request 7214). A mended frontend has everything in place, and this does nothing.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const OWN_TEXT = "nodeDefs.AtelierTrainLoRA.display_name";
const HOST_TEXT = "nodeDefs.KSampler.display_name";
const PATIENCE_MS = 5000;

// vue-i18n's instance; the frontend hands it to no extension.
function messages() {
  const vue = document.getElementById("vue-app")?.__vue_app__;
  return vue?._context?.provides?.[vue.__VUE_I18N_SYMBOL__]?.global;
}

async function hostTextsLoaded(i18n, locale) {
  const end = performance.now() + PATIENCE_MS;
  while (!i18n.te(HOST_TEXT, locale) && performance.now() < end) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

app.registerExtension({
  name: "LoraAtelier.Translations",

  // Runs before nodes are registered, which is when their titles are looked up.
  async init() {
    const locale = app.ui.settings.getSettingValue("Comfy.Locale");
    const i18n = messages();
    if (!i18n?.mergeLocaleMessage || !locale || locale === "en") return;
    await hostTextsLoaded(i18n, locale);
    if (i18n.te(OWN_TEXT, locale)) return;
    const texts = await (await api.fetchApi("/i18n")).json();
    if (texts[locale]) i18n.mergeLocaleMessage(locale, texts[locale]);
  },
});

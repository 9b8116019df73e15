// What the monitor says, in the two languages of the pack.

const ENGLISH = {
  hint: "The training chart appears here.",
  encoding: "Preparing",
  running: "Training",
  pausing: "Pausing …",
  finishing: "Finishing …",
  paused: "Paused",
  finished: "Finished",
  cancelled: "Cancelled",
  failed: "Failed",
  step: "step {step} / {last}",
  epoch: "epoch {epoch}",
  perSecond: "{n} it/s",
  perStep: "{n} s/it",
  left: "{time} left",
  deviceMemory: "{n} GB VRAM",
  processMemory: "{n} GB RAM",
  memoryHelp: "Most memory on the device in this run; memory of the whole ComfyUI process.",
  finish: "Finish now",
  finishHelp: "End after this step as a success: saving and previews downstream go on.",
  pause: "Pause",
  resume: "Continue",
  pauseHelp: "Wait before the next pass; the model stays in memory.",
  log: "log",
  logHelp: "Logarithmic scale for the losses.",
  loss: "loss",
  smoothed: "average",
  validation: "validation",
  learning_rate: "learning rate",
  grad_norm: "gradient",
  toggle: "Click to show or hide.",
  chartHelp: "Drag to zoom in on steps, double-click to see all of them.",
  preview: "step {step}",
  unreachable: "The server does not answer: {error}",
};

const CHINESE = {
  hint: "训练曲线将显示在这里。",
  encoding: "准备中",
  running: "训练中",
  pausing: "正在暂停…",
  finishing: "正在结束…",
  paused: "已暂停",
  finished: "已完成",
  cancelled: "已取消",
  failed: "失败",
  step: "第 {step} / {last} 步",
  epoch: "第 {epoch} 轮",
  perSecond: "{n} 步/秒",
  perStep: "{n} 秒/步",
  left: "剩余 {time}",
  deviceMemory: "显存 {n} GB",
  processMemory: "内存 {n} GB",
  memoryHelp: "本次训练的显存峰值；整个 ComfyUI 进程占用的内存。",
  finish: "立即完成",
  finishHelp: "当前步结束后即按成功收尾：下游的保存与预览照常进行。",
  pause: "暂停",
  resume: "继续",
  pauseHelp: "在下一次前向计算之前等待；模型仍留在显存中。",
  log: "对数",
  logHelp: "损失使用对数坐标。",
  loss: "损失",
  smoothed: "平均",
  validation: "验证",
  learning_rate: "学习率",
  grad_norm: "梯度",
  toggle: "点击显示或隐藏。",
  chartHelp: "拖动可放大一段步数，双击恢复全部。",
  preview: "第 {step} 步",
  unreachable: "服务器没有响应：{error}",
};

/** A function from the name of a text and its numbers to the text. */
export function textsFor(locale) {
  const table = String(locale ?? "").startsWith("zh") ? CHINESE : ENGLISH;
  return (name, values = {}) =>
    (table[name] ?? name).replace(/\{(\w+)\}/g, (_, key) => values[key] ?? "");
}

export const LANGUAGES = { en: ENGLISH, zh: CHINESE };

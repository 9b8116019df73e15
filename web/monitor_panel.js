// The monitor on one node: status, buttons, chart, messages, previews.

import { Chart } from "./chart.js";
import { duration, short } from "./chart_scale.js";
import { SERIES, coloursBeside } from "./chart_series.js";
import { make } from "./elements.js";
import { showStrip } from "./monitor_previews.js";
import { isOver } from "./monitor_run.js";
import { addMonitorStyle } from "./monitor_style.js";

const HINT_HEIGHT = 26;
const CHART_HEIGHT = 290;
const STRIP_HEIGHT = 72;
const MESSAGES_HEIGHT = 56;
const GIGABYTE = 2 ** 30;
const CHOICES = "LoraAtelier.Monitor"; // which lines this browser shows

export class Panel {
  /**
   * @param text from the name of a text to the text, see monitor_texts.js.
   * @param steer asks the server: (run id, "finish" | "pause" | "resume").
   */
  constructor(text, steer) {
    addMonitorStyle();
    this.text = text;
    this.steer = steer;
    this.run = null;
    this.element = make("div", "atelier-monitor empty");
    make("div", "atelier-hint", this.element).textContent = text("hint");
    this._buildHead();
    this.bar = make("i", "", make("div", "atelier-bar", this.element));
    this.figures = make("div", "atelier-figures", this.element);
    const legend = make("div", "atelier-legend", this.element);
    const plot = make("div", "atelier-plot", this.element);
    const canvas = make("canvas", "", plot);
    canvas.title = text("chartHelp");
    this.chart = new Chart(canvas, () => this._showValues());
    this._restoreChoices();
    this._buildLegend(legend);
    new ResizeObserver(() => this.chart.redraw()).observe(plot);
    this.messages = make("div", "atelier-messages", this.element);
    this.strip = make("div", "atelier-strip", this.element);
  }

  /** Px the node must keep for it. */
  get minHeight() {
    if (!this.run) return HINT_HEIGHT;
    const messages = this.run.messages.length ? MESSAGES_HEIGHT : 0;
    return CHART_HEIGHT + messages + (this.run.previews.length ? STRIP_HEIGHT : 0);
  }

  /** Show a run, or with null the hint alone. */
  show(run) {
    if (run?.id !== this.run?.id) {
      this.chart.zoom = this.chart.hover = null;
      this.failure = "";
    }
    this.run = run;
    this.element.classList.toggle("empty", !run);
    if (!run) return;
    this.element.dataset.status = run.status;
    this._showHead();
    this._showFigures();
    this.chart.set(run);
    this._showValues();
    this._showMessages();
    showStrip(this.strip, run.previews, this.text);
  }

  /** Draw again when the zoom of the graph or the theme has changed. */
  refresh() {
    if (!this.run) return;
    const look = `${this.chart.density()} ${getComputedStyle(this.element).color}`;
    if (look === this.look) return;
    this.look = look;
    this._colourLegend();
    this.chart.redraw();
  }

  // Status and buttons

  _buildHead() {
    const head = make("div", "atelier-head", this.element);
    this.status = make("span", "atelier-status", head);
    make("span", "atelier-room", head);
    this.pauseButton = this._button(head, "", () => (this._isHeld() ? "resume" : "pause"));
    this.pauseButton.title = this.text("pauseHelp");
    this.finishButton = this._button(head, "atelier-finish", () => "finish");
    this.finishButton.textContent = this.text("finish");
    this.finishButton.title = this.text("finishHelp");
  }

  _button(parent, className, action) {
    const button = make("button", className, parent);
    button.addEventListener("click", async () => {
      button.disabled = true; // until the server has answered, and told of the new state
      this.failure = "";
      try {
        await this.steer(this.run.id, action());
      } catch (error) {
        this.failure = this.text("unreachable", { error: error.message });
        this._showMessages();
      }
      this._showHead();
    });
    return button;
  }

  _isHeld() {
    return this.run.pause_requested || this.run.status === "paused";
  }

  _showHead() {
    const { run, text } = this;
    const over = isOver(run);
    const waiting = run.status === "running" && run.pause_requested;
    const asked = !over && run.finish_requested ? "finishing" : waiting ? "pausing" : run.status;
    this.status.textContent = text(asked);
    this.pauseButton.textContent = text(this._isHeld() ? "resume" : "pause");
    this.pauseButton.disabled = this.finishButton.disabled = run.finish_requested;
    this.pauseButton.hidden = this.finishButton.hidden = over;
    const share = run.last_step ? run.step / run.last_step : 0;
    this.bar.style.width = `${100 * Math.min(1, share)}%`;
  }

  _showFigures() {
    const { run, text } = this;
    const parts = [];
    if (run.step) {
      parts.push(text("step", { step: run.step, last: run.last_step || run.step }));
      parts.push(text("epoch", { epoch: run.epoch + 1 }));
    }
    const each = run.seconds_per_step;
    if (each > 1) parts.push(text("perStep", { n: short(each) }));
    else if (each > 0) parts.push(text("perSecond", { n: short(1 / each) }));
    if (!isOver(run) && run.seconds_left) {
      parts.push(text("left", { time: duration(run.seconds_left) }));
    }
    const { device, process } = run.memory;
    if (device) parts.push(text("deviceMemory", { n: (device / GIGABYTE).toFixed(1) }));
    parts.push(text("processMemory", { n: (process / GIGABYTE).toFixed(1) }));
    this.figures.replaceChildren(
      ...parts.map((part) => {
        const span = make("span");
        span.textContent = part;
        return span;
      }),
    );
    this.figures.title = text("memoryHelp");
  }

  _showMessages() {
    const lines = this.run.messages.slice(-3);
    if (this.failure) lines.push({ text: this.failure, level: "error" });
    this.messages.replaceChildren(
      ...lines.map(({ text, level }) => {
        const line = make("p", level);
        line.textContent = text;
        return line;
      }),
    );
  }

  // The legend, which is the read-out too

  _buildLegend(legend) {
    this.entries = {};
    for (const { name } of SERIES) {
      const button = make("button", "", legend);
      make("i", "", button);
      make("span", "", button).textContent = this.text(name);
      button.title = this.text("toggle");
      const value = make("b", "", button);
      button.addEventListener("click", () => {
        this.chart.shown[name] = !this.chart.shown[name];
        this._keepChoices();
      });
      this.entries[name] = { button, value };
    }
    make("span", "atelier-room", legend);
    this.logButton = make("button", "atelier-log", legend);
    this.logButton.textContent = this.text("log");
    this.logButton.title = this.text("logHelp");
    this.logButton.addEventListener("click", () => {
      this.chart.logarithmic = !this.chart.logarithmic;
      this._keepChoices();
    });
    this._showChoices();
  }

  _keepChoices() {
    const { shown, logarithmic } = this.chart;
    localStorage.setItem(CHOICES, JSON.stringify({ shown, logarithmic }));
    this._showChoices();
    this.chart.redraw();
  }

  _restoreChoices() {
    const kept = JSON.parse(localStorage.getItem(CHOICES) ?? "{}");
    Object.assign(this.chart.shown, kept.shown);
    this.chart.logarithmic = kept.logarithmic ?? false;
  }

  _showChoices() {
    for (const [name, { button }] of Object.entries(this.entries)) {
      button.setAttribute("aria-pressed", this.chart.shown[name]);
    }
    this.logButton.setAttribute("aria-pressed", this.chart.logarithmic);
  }

  _colourLegend() {
    const colours = coloursBeside(this.element);
    for (const [name, { button }] of Object.entries(this.entries)) {
      button.style.setProperty("--of", colours[name]);
    }
  }

  /** The values under the mouse, else the newest. */
  _showValues() {
    if (!this.run) return;
    const { points, validation } = this.run;
    const at = this.chart.hover ?? points.step.length - 1;
    for (const [name, { button, value }] of Object.entries(this.entries)) {
      const present = name === "validation" ? validation.length > 0 : at >= 0;
      button.hidden = !present;
      if (name === "validation") value.textContent = this._validationAt(points.step[at]);
      else value.textContent = present ? short(points[name]?.mean[at]) : "";
    }
  }

  /** The loss at a step or last before, and that of the base model. */
  _validationAt(step) {
    const until = this.run.validation.filter(([at]) => step === undefined || at <= step);
    if (!until.length) return "";
    const [, loss, base] = until[until.length - 1];
    const level = base === null ? "" : ` (${this.text("baseModel")} ${short(base)})`;
    return short(loss) + level;
  }
}

// The chart of a run on a canvas: lines over steps, axes, and a cross-hair.

import { drawBand, drawDot, drawLevel, drawLine, drawPoints, drawTag } from "./chart_lines.js";
import { listen } from "./chart_mouse.js";
import { logTicks, quantile, scale, short, ticks } from "./chart_scale.js";
import { OWN_AXES, SERIES, coloursBeside } from "./chart_series.js";

const MARGIN = { left: 44, right: 10, top: 8, bottom: 18 };
const RIGHT_AXIS = 44;
const FONT = "10px Inter, Arial, sans-serif";
const MAX_DENSITY = 4;
const FEW = 50; // so few points are all shown; of more, the highest hundredth may leave the picture

export class Chart {
  /** @param onHover called when the point under the mouse, `hover`, has changed. */
  constructor(canvas, onHover) {
    this.canvas = canvas;
    this.onHover = onHover;
    this.points = { step: [] };
    this.validation = [];
    this.shown = Object.fromEntries(SERIES.map(({ name, shown }) => [name, shown]));
    this.logarithmic = false;
    this.zoom = null; // [first step, last step]
    this.hover = null; // the number of a point
    this.drag = null; // [from, to] in px
    listen(this);
  }

  set({ points, validation }) {
    this.points = points;
    this.validation = validation;
    this.redraw();
  }

  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
  }

  /** The first and the last step in view. */
  range() {
    if (this.zoom) return this.zoom;
    const steps = [...this.points.step.slice(0, 1), ...this.points.step.slice(-1)];
    for (const [step] of [...this.validation.slice(0, 1), ...this.validation.slice(-1)]) {
      steps.push(step);
    }
    if (!steps.length) return [0, 1];
    const first = Math.min(...steps);
    return [first, Math.max(...steps, first + 1)];
  }

  /** The step, with its fraction, at a place in px. */
  stepAt(x) {
    const [first, last] = this.range();
    const { left, right } = this.box;
    return first + ((x - left) / (right - left)) * (last - first);
  }

  /** Pixels of the screen in one of the page, which the zoom of the graph stretches. */
  density() {
    const { canvas } = this;
    const stretched = canvas.getBoundingClientRect().width / (canvas.clientWidth || 1) || 1;
    return Math.min(MAX_DENSITY, Math.max(1, stretched * (window.devicePixelRatio || 1)));
  }

  draw() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    const density = this.density();
    canvas.width = Math.round(width * density);
    canvas.height = Math.round(height * density);
    const pen = canvas.getContext("2d");
    pen.scale(density, density);
    pen.font = FONT;
    this.colours = coloursBeside(canvas);
    this.ink = getComputedStyle(canvas).color;
    const side = OWN_AXES.find((name) => this.shown[name]);
    this.box = {
      left: MARGIN.left,
      top: MARGIN.top,
      right: width - (side ? RIGHT_AXIS : MARGIN.right),
      bottom: height - MARGIN.bottom,
    };
    const axes = { loss: this._lossAxis() };
    for (const name of OWN_AXES) axes[name] = this._ownAxis(name);
    this._drawSteps(pen);
    this._drawAxis(pen, axes.loss, this.box.left - 5, "right", this.ink);
    if (side) this._drawAxis(pen, axes[side], this.box.right + 5, "left", this.colours[side]);
    this._drawGrid(pen, axes.loss);
    this._drawSeries(pen, axes);
    this._drawCross(pen, axes);
    this._drawDrag(pen);
  }

  // Axes: the values they span, and px

  _x(step) {
    const { left, right } = this.box;
    return left + scale(...this.range())(step) * (right - left);
  }

  _y({ low, high, logarithmic }, value) {
    const { top, bottom } = this.box;
    const share = scale(low, high, logarithmic)(value);
    return bottom - Math.min(1, Math.max(0, share)) * (bottom - top);
  }

  _inside(step) {
    const [first, last] = this.range();
    return step >= first && step <= last;
  }

  _values(name, kind) {
    const values = this.points[name]?.[kind] ?? [];
    return values.filter((value, i) => value !== null && this._inside(this.points.step[i]));
  }

  _lossAxis() {
    const values = this.shown.smoothed ? this._values("smoothed", "mean") : [];
    if (this.shown.validation) {
      for (const [step, ...losses] of this.validation) {
        if (this._inside(step)) values.push(...losses.filter((value) => value !== null));
      }
    }
    if (this.shown.loss || !values.length) {
      const tops = this._values("loss", "max").sort((a, b) => a - b);
      if (tops.length) values.push(quantile(tops, tops.length < FEW ? 1 : 0.99));
      values.push(...this._values("loss", "min"));
    }
    return padded(Math.min(...values), Math.max(...values), this.logarithmic);
  }

  _ownAxis(name) {
    return padded(0, Math.max(0, ...this._values(name, "max")), false);
  }

  _ticks({ low, high, logarithmic }) {
    const count = Math.max(2, (this.box.bottom - this.box.top) / 32);
    return (logarithmic ? logTicks : ticks)(low, high, count);
  }

  _drawSteps(pen) {
    const { left, right, bottom } = this.box;
    pen.fillStyle = this.ink;
    pen.textBaseline = "top";
    pen.globalAlpha = 0.65;
    for (const step of ticks(...this.range(), Math.max(2, (right - left) / 70))) {
      if (!Number.isInteger(step)) continue;
      const x = this._x(step);
      pen.textAlign = x > right - 12 ? "right" : x < left + 12 ? "left" : "center";
      pen.fillText(String(step), x, bottom + 5);
    }
    pen.globalAlpha = 1;
  }

  _drawAxis(pen, axis, x, align, colour) {
    pen.globalAlpha = 0.7;
    pen.fillStyle = colour;
    pen.textAlign = align;
    pen.textBaseline = "middle";
    for (const value of this._ticks(axis)) pen.fillText(short(value), x, this._y(axis, value));
    pen.globalAlpha = 1;
  }

  _drawGrid(pen, axis) {
    const { left, right } = this.box;
    pen.globalAlpha = 0.12;
    pen.fillStyle = this.ink;
    for (const value of this._ticks(axis)) {
      pen.fillRect(left, Math.round(this._y(axis, value)), right - left, 1);
    }
    pen.globalAlpha = 1;
  }

  // Lines

  _drawSeries(pen, axes) {
    const { left, right, top, bottom } = this.box;
    const x = (step) => this._x(step);
    pen.save();
    pen.beginPath();
    pen.rect(left, top - 4, right - left, bottom - top + 8);
    pen.clip();
    pen.lineJoin = "round";
    for (const { name, axis, kind } of SERIES) {
      const values = this.points[name];
      if (!this.shown[name] || (kind !== "points" && !values)) continue;
      const y = (value) => this._y(axes[axis], value);
      pen.strokeStyle = pen.fillStyle = this.colours[name];
      if (kind === "points") this._drawValidation(pen, x, y);
      else if (kind === "line") {
        drawLine(pen, this.points.step, values.mean, x, y, axis === "loss" ? 2 : 1.25);
      } else drawBand(pen, this.points.step, values, x, y, { high: axes[axis].high, top });
    }
    pen.restore();
  }

  /** With the level of the base model, which the loss should stay below. */
  _drawValidation(pen, x, y) {
    drawPoints(pen, this.validation, x, y);
    const base = this.validation[this.validation.length - 1]?.[2] ?? null;
    if (base !== null) drawLevel(pen, this.box, y(base));
  }

  _drawCross(pen, axes) {
    const step = this.points.step[this.hover ?? -1];
    if (step === undefined || this.drag || !this._inside(step)) return;
    const { top, bottom } = this.box;
    const x = this._x(step);
    pen.globalAlpha = 0.4;
    pen.fillStyle = this.ink;
    pen.fillRect(Math.round(x), top, 1, bottom - top);
    pen.globalAlpha = 1;
    for (const { name, axis } of SERIES) {
      const value = this.shown[name] ? this.points[name]?.mean[this.hover] : null;
      if (value === null || value === undefined) continue;
      pen.fillStyle = this.colours[name];
      drawDot(pen, x, this._y(axes[axis], value));
    }
    const ground = getComputedStyle(this.canvas).backgroundColor;
    drawTag(pen, String(step), x, bottom + 2, this.box, this.ink, ground);
  }

  _drawDrag(pen) {
    if (!this.drag) return;
    const [from, to] = [...this.drag].sort((a, b) => a - b);
    pen.globalAlpha = 0.18;
    pen.fillStyle = this.colours.loss;
    pen.fillRect(from, this.box.top, to - from, this.box.bottom - this.box.top);
    pen.globalAlpha = 1;
  }
}

/** An axis with some room beyond the values. */
function padded(low, high, logarithmic) {
  if (!Number.isFinite(low) || !Number.isFinite(high)) [low, high] = [0, 1];
  if (logarithmic) {
    const floor = Math.max(low, high * 1e-6, 1e-12);
    return { low: floor / 1.15, high: Math.max(high, floor * 1.5) * 1.15, logarithmic };
  }
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return { low: Math.max(0, low - room), high: high + room, logarithmic };
}

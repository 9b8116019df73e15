// How the values of a series become lines: pure drawing, with x(step) and y(value) in px.

/** From the smallest to the largest value of each bin: no spike is lost. */
export function drawBand(pen, steps, { min, max }, x, y, bound) {
  const dense = max.some((value, i) => value !== min[i]);
  pen.globalAlpha = dense ? 0.35 : 0.55;
  pen.lineWidth = 1;
  pen.beginPath();
  let drawing = false;
  steps.forEach((step, i) => {
    if (min[i] === null) {
      drawing = false;
      return;
    }
    const [at, low, high] = [x(step), y(min[i]), y(max[i])];
    drawing ? pen.lineTo(at, low) : pen.moveTo(at, low);
    if (high !== low) pen.lineTo(at, high);
    if (max[i] > bound.high) pen.fillRect(at - 1.5, bound.top - 4, 3, 3); // goes on above
    drawing = true;
  });
  pen.stroke();
  pen.globalAlpha = 1;
}

/** A line through values, which may be null. */
export function drawLine(pen, steps, values, x, y, width) {
  pen.lineWidth = width;
  pen.beginPath();
  let drawing = false;
  steps.forEach((step, i) => {
    if (values[i] === null) {
      drawing = false;
      return;
    }
    drawing ? pen.lineTo(x(step), y(values[i])) : pen.moveTo(x(step), y(values[i]));
    drawing = true;
  });
  pen.stroke();
}

/** Few values, each with a dot. */
export function drawPoints(pen, points, x, y) {
  const known = points.filter(([, value]) => value !== null);
  drawLine(pen, known.map(([step]) => step), known.map(([, value]) => value), x, y, 1.5);
  for (const [step, value] of known) drawDot(pen, x(step), y(value));
}

export function drawDot(pen, x, y) {
  pen.beginPath();
  pen.arc(x, y, 3, 0, 2 * Math.PI);
  pen.fill();
}

/** A label on the axis of the steps. */
export function drawTag(pen, text, x, top, bounds, ink, ground) {
  const half = pen.measureText(text).width / 2 + 4;
  const middle = Math.min(bounds.right - half, Math.max(bounds.left + half, x));
  pen.fillStyle = ink;
  pen.beginPath();
  pen.roundRect(middle - half, top, 2 * half, 14, 3);
  pen.fill();
  pen.fillStyle = ground;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(text, middle, top + 7.5);
}

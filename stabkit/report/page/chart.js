// Draws the figures of stabkit.report.figures as SVG. Nothing in here writes markup: texts go in as text nodes.
"use strict";
const Stabkit = {};
(function (S) {
  const SPACE = "http://www.w3.org/2000/svg";

  S.make = function (tag, attributes, parent, text) {
    const svg = "svg g path line rect circle text defs pattern clipPath title".split(" ").includes(tag);
    const made = svg ? document.createElementNS(SPACE, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  };

  S.number = function (value) {
    if (typeof value === "string") return value;
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    return String(Number(value.toPrecision(4)));
  };

  S.shortened = (text, most) => (text.length <= most ? text : text.slice(0, most / 2 - 1) + "…" + text.slice(-most / 2));

  function ticks(low, high, log, wanted) {
    if (log) {
      const first = Math.ceil(low - 1e-9), last = Math.floor(high + 1e-9), by = Math.max(1, Math.ceil((last - first + 1) / wanted));
      const found = [];
      for (let power = first; power <= last; power += by) found.push(power);
      return found;
    }
    const raw = (high - low) / wanted || 1, base = 10 ** Math.floor(Math.log10(raw));
    const by = base * [1, 2, 5, 10].find((factor) => base * factor >= raw * 0.999);
    const found = [];
    for (let at = Math.ceil(low / by - 1e-9) * by; at <= high + by * 1e-9; at += by) found.push(Number(at.toPrecision(12)));
    return found;
  }
  S.ticks = ticks;

  S.steps = function (low, high, wanted) {
    return ticks(low, high, false, wanted).filter((step) => Number.isInteger(step) && step >= low && step <= high);
  };

  // One panel: a line over steps in the box {x, y, width, height}. Returns its scales and where numbers are missing.
  S.panel = function (svg, line, box, range, extra) {
    const values = line.values.map((value) => (typeof value === "number" ? value : NaN));
    const shown = values.filter((value) => Number.isFinite(value) && (!line.log || value > 0));
    const axis = (value) => (line.log ? Math.log10(value) : value);
    let low = Math.min(...shown.map(axis)), high = Math.max(...shown.map(axis));
    if (!shown.length) [low, high] = [0, 1];
    for (const value of extra || []) {  // what it is held against belongs into the picture where it does not squash it
      const at = axis(value), reach = Math.max(high - low, line.log ? 0.5 : Math.abs(high) * 0.2);
      if (Number.isFinite(at) && at > low - 1.5 * reach && at < high + 1.5 * reach) [low, high] = [Math.min(low, at), Math.max(high, at)];
    }
    const constant = low === high && shown.length ? [low] : null;
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 0.5;
    low -= pad; high += pad;
    const x = (step) => box.x + ((step - range[0]) / Math.max(range[1] - range[0], 1)) * box.width;
    const y = (value) => box.y + box.height - ((axis(value) - low) / (high - low)) * box.height;
    for (const tick of constant || ticks(low, high, line.log, Math.max(2, Math.round(box.height / 44)))) {
      const at = box.y + box.height - ((tick - low) / (high - low)) * box.height;
      S.make("line", { class: "grid", x1: box.x, x2: box.x + box.width, y1: Math.round(at), y2: Math.round(at) }, svg);
      S.make("text", { x: box.x - 8, y: at + 4, "text-anchor": "end" }, svg, S.number(line.log ? Number((10 ** tick).toPrecision(6)) : tick));
    }
    // Where the value is no number a hatched band says so: a curve that just stops could be a log that just stops.
    const step = (i) => line.steps[Math.min(Math.max(i, 0), line.steps.length - 1)];
    let from = -1, broken = false;
    for (let i = 0; i <= values.length; i++) {
      const bad = i < values.length && !Number.isFinite(values[i]);
      if (bad && from < 0) from = i;
      if (!bad && from >= 0) {
        const left = x(step(from)), right = Math.max(x(step(i)), left + 3);
        const band = S.make("rect", { class: "broken", x: left, width: right - left, y: box.y, height: box.height }, svg);
        S.make("title", {}, band, "not a number, or not recorded");
        [from, broken] = [-1, true];
      }
    }
    let path = "", pen = false;
    const alone = [];
    values.forEach((value, i) => {
      const draws = Number.isFinite(value) && (!line.log || value > 0);
      if (draws) {
        path += (pen ? "L" : "M") + x(line.steps[i]).toFixed(1) + " " + y(value).toFixed(1);
        const next = values[i + 1];
        if (!pen && !(Number.isFinite(next) && (!line.log || next > 0))) alone.push(i);
      }
      pen = draws;
    });
    S.make("path", { class: "curve", d: path }, svg);
    for (const i of alone) S.make("circle", { class: "dot", cx: x(line.steps[i]), cy: y(values[i]), r: 2 }, svg);
    return { x, y, low, high, axis, broken };
  };

  S.hatch = function (svg) {
    const pattern = S.make("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, S.make("defs", {}, svg));
    S.make("line", { class: "hatch", x1: 0, x2: 0, y1: 0, y2: 6 }, pattern);
  };

  S.axis = function (svg, range, x, y, width) {
    for (const tick of S.steps(range[0], range[1], Math.max(3, Math.floor(width / 110)))) {
      const anchor = tick > range[1] - (range[1] - range[0]) * 0.02 ? "end" : "middle";
      S.make("text", { x: x(tick), y, "text-anchor": anchor }, svg, tick.toLocaleString("en"));
    }
  };

  // A box that follows the pointer; `say(x, y)` gives lines of text, the first of them bold, or null.
  S.tip = function (holder, target, say) {
    const tip = S.make("div", { class: "tip", role: "status" }, holder);
    tip.hidden = true;
    target.addEventListener("pointermove", (event) => {
      const frame = holder.getBoundingClientRect(), inside = target.getBoundingClientRect();
      const lines = say(event.clientX - inside.left, event.clientY - inside.top, inside);
      tip.hidden = !lines;
      if (!lines) return;
      tip.textContent = "";
      lines.forEach((line, i) => S.make("div", {}, i ? tip : S.make("b", {}, tip), line));
      const left = event.clientX - frame.left, room = frame.width - tip.offsetWidth;
      tip.style.left = Math.max(0, Math.min(left + 14, room)) + "px";
      tip.style.top = event.clientY - frame.top + 18 + "px";
    });
    target.addEventListener("pointerleave", () => { tip.hidden = true; });
  };

  S.timeline = function (holder, figure, margin) {
    holder.textContent = "";
    const width = holder.clientWidth, inner = width - margin, range = [figure.first, Math.max(figure.last, figure.first + 1)];
    const heights = figure.lines.map((line, i) => (i ? 58 : 210)), top = figure.bands.length ? 30 : 8, gap = 22;
    const height = top + heights.reduce((sum, each) => sum + each + gap, 0) + 6;
    const svg = S.make("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Loss, gradient norm and learning rate over the steps, with the findings marked" }, holder);
    S.hatch(svg);
    const x = (step) => margin + ((step - range[0]) / (range[1] - range[0])) * inner, bottom = height - 6 - gap;
    for (const band of figure.bands) {
      const left = x(band.first), right = Math.max(x(band.last), left + 2);
      S.make("rect", { class: `band ${band.severity}`, x: left, width: right - left, y: top, height: bottom - top }, svg);
    }
    let y = top;
    figure.lines.forEach((line, i) => {
      S.make("text", { class: "title", x: 0, y: y + 11 }, svg, line.label);
      S.panel(svg, line, { x: margin, y, width: inner, height: heights[i] }, range);
      y += heights[i] + gap;
    });
    let end = -99;  // a badge that would lie on another moves to its right
    const order = [...figure.bands].sort((a, b) => a.first - b.first || a.number - b.number);
    for (const band of order) {
      const edge = x(band.first), at = Math.max(edge, end + 23);
      S.make("line", { class: `edge ${band.severity}`, x1: edge, x2: edge, y1: top - 8, y2: bottom }, svg);
      if (at - edge > 70 || at > width - 8) continue;
      end = at;
      const link = S.make("g", { class: `badge ${band.severity}`, tabindex: 0, role: "link" }, svg);
      S.make("title", {}, link, `${band.title}, step ${band.first}: ${S.shortened(band.message, 200)}`);
      S.make("circle", { cx: at, cy: 12, r: 9.5 }, link);
      S.make("text", { x: at, y: 16 }, link, band.number);
      const go = () => { location.hash = `f${band.number}`; };
      link.addEventListener("click", go);
      link.addEventListener("keydown", (event) => { if (event.key === "Enter") go(); });
      link.style.cursor = "pointer";
    }
    S.axis(svg, range, x, height - 4, inner);
    const cross = S.make("line", { class: "cross", y1: top, y2: bottom, visibility: "hidden" }, svg);
    S.tip(holder, svg, (px) => {
      const step = Math.round(range[0] + ((px - margin) / inner) * (range[1] - range[0]));
      const within = step >= range[0] && step <= range[1];
      cross.setAttribute("visibility", within ? "visible" : "hidden");
      if (!within) return null;
      for (const end of ["x1", "x2"]) cross.setAttribute(end, x(step));
      return [`step ${nearest(figure.lines[0], step).step}`, ...figure.lines.map((line) => `${line.label} ${S.number(nearest(line, step).value)}`),
        ...figure.bands.filter((band) => band.first <= step && step <= band.last).map((band) => `${band.number} ${band.title}`)];
    });
    svg.addEventListener("pointerleave", () => cross.setAttribute("visibility", "hidden"));
  };

  function nearest(line, step) {
    if (!line || !line.steps.length) return { step, value: "" };
    let low = 0, high = line.steps.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (line.steps[middle] <= step) low = middle; else high = middle; }
    const best = Math.abs(line.steps[low] - step) <= Math.abs(line.steps[high] - step) ? low : high;
    return { step: line.steps[best], value: line.values[best] };
  }

  S.evidence = function (holder, figures) {
    holder.textContent = "";
    const frames = figures.map(() => S.make("figure", { class: "chart" }, holder));  // all of them first: they share the width
    figures.forEach((figure, i) => plot(frames[i], figure));
  };

  function plot(frame, figure) {
    const width = frame.clientWidth, margin = 54, top = 34, inner = width - margin - 8, height = 196;
    const svg = S.make("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${figure.metric} around the finding` }, frame);
    S.hatch(svg);
    S.make("text", { class: "title", x: 0, y: 11 }, svg, figure.metric);
    if (figure.tensor) S.make("title", {}, S.make("text", { class: "name", x: 0, y: 26 }, svg, S.shortened(figure.tensor, 44)), figure.tensor);
    const range = [figure.steps[0], Math.max(figure.steps[figure.steps.length - 1], figure.steps[0] + 1)];
    const box = { x: margin, y: top, width: inner, height: height - top - 20 };
    const x = (step) => margin + ((step - range[0]) / (range[1] - range[0])) * inner;
    const left = x(Math.max(figure.first, range[0])), right = Math.max(x(Math.min(figure.last, range[1])), left + 2);
    S.make("rect", { class: `band ${figure.severity}`, x: left, width: right - left, y: top, height: box.height }, svg);
    const limits = figure.marks.map((mark) => mark.expected).filter((value) => typeof value === "number");
    const panel = S.panel(svg, figure, box, range, limits);
    S.make("line", { class: `edge ${figure.severity}`, x1: left, x2: left, y1: top, y2: top + box.height }, svg);
    for (const limit of new Set(limits)) {
      const y = panel.y(limit);
      if (!(y >= top && y <= top + box.height)) continue;
      S.make("line", { class: "expected", x1: margin, x2: margin + inner, y1: y, y2: y }, svg);
      S.make("text", { class: "cool", x: margin + inner, y: y - 4, "text-anchor": "end" }, svg, `expected ${S.number(limit)}`);
    }
    for (const mark of figure.marks) {
      const y = typeof mark.observed === "number" ? panel.y(mark.observed) : NaN;
      if (y >= top - 1 && y <= top + box.height + 1 && mark.step >= range[0] && mark.step <= range[1]) S.make("circle", { class: "mark", cx: x(mark.step), cy: y, r: 4.5 }, svg);
    }
    S.axis(svg, range, x, height - 4, inner);
    S.tip(frame, svg, (px) => {
      const step = Math.round(range[0] + ((px - margin) / inner) * (range[1] - range[0]));
      if (step < range[0] || step > range[1]) return null;
      const near = nearest(figure, step);
      return [`step ${near.step}`, `${figure.metric} ${S.number(near.value)}`];
    });
  }
})(Stabkit);

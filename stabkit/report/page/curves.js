// The same quantity of several runs in one picture: the first run's in ink, the others' in colours and dashes of their own.
"use strict";
(function (S) {
  const LOOKS = [["var(--cool)", ""], ["#c77d0a", "6 3"], ["#7b5ea7", "2 2"], ["#3d8b57", "8 2 2 2"], ["#c2527a", "4 4"], ["#8a7a3d", "1 3"]];
  const DECADES = 1.5, HEIGHT = 220, MARGIN = 54;

  // `figure`: {title, runs: [{name, line}], linear, mark, says}; a line is {steps, values}; at the step `mark` a line says something.
  S.curves = function (holder, figure) {
    const { runs, title, mark } = figure;
    holder.textContent = "";
    const numbers = runs.map(({ line }) => line.values.map((value) => (typeof value === "number" ? value : NaN)));
    const known = numbers.flat().filter(Number.isFinite);
    if (!known.length) return;
    const least = known.reduce((a, b) => Math.min(a, b)), most = known.reduce((a, b) => Math.max(a, b));
    const log = !figure.linear && least > 0 && Math.log10(most / least) > DECADES, axis = (value) => (log ? Math.log10(value) : value);
    const pad = (axis(most) - axis(least)) * 0.06 || 0.5, low = axis(least) - pad, high = axis(most) + pad;
    const ends = runs.flatMap(({ line }) => [line.steps[0], line.steps[line.steps.length - 1]]).filter((step) => step !== undefined);
    const range = [Math.min(...ends), Math.max(...ends, Math.min(...ends) + 1)];
    const width = holder.clientWidth, top = 24, inner = width - MARGIN - 4, tall = HEIGHT - top - 20;
    const svg = S.make("svg", { height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": title }, holder);
    const x = (step) => MARGIN + ((step - range[0]) / (range[1] - range[0])) * inner, y = (value) => top + tall - ((axis(value) - low) / (high - low)) * tall;
    S.make("text", { class: "title", x: 0, y: 11 }, svg, title);
    for (const tick of S.ticks(low, high, log, 4)) {
      const at = Math.round(top + tall - ((tick - low) / (high - low)) * tall);
      S.make("line", { class: "grid", x1: MARGIN, x2: MARGIN + inner, y1: at, y2: at }, svg);
      S.make("text", { x: MARGIN - 8, y: at + 4, "text-anchor": "end" }, svg, S.number(log ? Number((10 ** tick).toPrecision(6)) : tick));
    }
    S.axis(svg, range, x, HEIGHT - 4, inner);
    if (typeof mark === "number" && mark >= range[0] && mark <= range[1]) {
      S.make("line", { class: "edge warning", x1: x(mark), x2: x(mark), y1: top - 6, y2: top + tall }, svg);
      const late = x(mark) > MARGIN + inner * 0.7;
      S.make("text", { x: x(mark) + (late ? -5 : 5), y: top - 1, "text-anchor": late ? "end" : "start" }, svg, figure.says || "");
    }
    const keys = S.make("div", { class: "legend" }, holder);
    runs.map((run, i) => [run, i]).reverse().forEach(([{ name, line }, i]) => {  // the shown run lies on top
      const [colour, dash] = i ? LOOKS[(i - 1) % LOOKS.length] : ["var(--ink)", ""], look = (element) => Object.assign(element.style, { stroke: colour, strokeDasharray: dash });
      let path = "", pen = false, last = -1;
      numbers[i].forEach((value, at) => {
        const draws = Number.isFinite(value) && (!log || value > 0);
        if (draws) { path += `${pen ? "L" : "M"}${x(line.steps[at]).toFixed(1)} ${y(value).toFixed(1)}`; last = at; }
        pen = draws;
      });
      look(S.make("path", { class: i ? "curve other" : "curve shown", d: path }, svg));
      const broke = last >= 0 && last < numbers[i].length - 1;  // a loss that is no number any more is no loss that just ends
      if (broke) S.make("text", { class: "broke", x: x(line.steps[last]), y: y(numbers[i][last]) + 5, "text-anchor": "middle" }, svg, "×").style.fill = colour;
      const key = S.make("span", { title: name });
      const swatch = S.make("svg", { width: 26, height: 10, "aria-hidden": "true" }, key);
      look(S.make("line", { x1: 0, x2: 26, y1: 5, y2: 5, "stroke-width": 2 }, swatch));
      key.append(S.shortened(name, 60) + (broke ? " (× not a number from here)" : ""));
      keys.prepend(key);
    });
  };

  S.curves.most = LOOKS.length;
})(Stabkit);

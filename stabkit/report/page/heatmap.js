// Draws the heatmap of stabkit.report.heatmap on a canvas: a row for each tensor, or for each folded module.
"use strict";
(function (S) {
  const ROW = 16, MISSING = 0, ZERO = 1, LOWEST = 2, HIGHEST = 65534, NONFINITE = 65535, UNKNOWN = -128, FROM = 25, FULL = 100;
  const BROKEN = "broken", NOTHING = "nothing";

  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out.buffer;
  }

  function levels(text) {  // little-endian whatever the machine is
    const view = new DataView(bytes(text)), out = new Uint16Array(view.byteLength / 2);
    for (let i = 0; i < out.length; i++) out[i] = view.getUint16(2 * i, true);
    return out;
  }

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function rgb(name) {
    const context = document.createElement("canvas").getContext("2d");
    context.fillStyle = color(name);
    context.fillRect(0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data;
  }
  const blend = (a, b, share) => [0, 1, 2].map((i) => Math.round(a[i] + (b[i] - a[i]) * share));

  class Heatmap {
    constructor(holder, figures, metric) {
      this.holder = holder;
      this.wanted = metric;
      this.figures = figures;
      this.decoded = new Map();
      this.which = 0;
      this.metric = 0;
      this.byPast = true;
      this.build();
      this.choose(0);
    }

    build() {
      const tools = S.make("div", { class: "tools" }, this.holder);
      const select = (label, id) => { const box = S.make("label", {}, tools, label + " "); return S.make("select", { id }, box); };
      this.optimizer = select("optimizer", "map-optimizer");
      this.optimizer.parentNode.hidden = this.figures.length < 2;
      this.figures.forEach((figure, i) => S.make("option", { value: i }, this.optimizer, String(figure.optimizer)));
      this.quantity = select("show", "map-quantity");
      this.scale = select("coloured by", "map-scale");
      S.make("option", { value: "past" }, this.scale, "distance from its own past");
      S.make("option", { value: "value" }, this.scale, "value");
      this.fold = S.make("button", { type: "button", id: "map-fold" }, tools);
      this.map = S.make("div", { class: "map" }, this.holder);
      this.names = S.make("div", { class: "names" }, this.map);
      this.canvas = S.make("canvas", { role: "img", "aria-label": "Heatmap of tensors by steps" }, S.make("div", {}, this.map));
      this.axis = S.make("div", { class: "map-axis chart" }, this.holder);
      this.legend = S.make("div", { class: "legend" }, this.holder);
      this.caption = S.make("p", { class: "caption" }, this.holder);
      this.optimizer.addEventListener("change", () => this.choose(Number(this.optimizer.value)));
      this.quantity.addEventListener("change", () => { this.metric = Number(this.quantity.value); this.wanted = this.figure.quantities[this.metric].metric; this.draw(); });
      this.scale.addEventListener("change", () => { this.byPast = this.scale.value === "past"; this.draw(); });
      this.fold.addEventListener("click", () => this.foldAll(this.open.size === 0));
      S.tip(this.holder, this.canvas, (x, y, box) => this.say(x, y, box));
    }

    choose(which) {
      this.which = which;
      this.figure = this.figures[which];
      this.metric = Math.max(0, this.figure.quantities.findIndex((each) => each.metric === this.wanted));
      this.quantity.textContent = "";
      this.figure.quantities.forEach((each, i) => {
        const none = each.metric === "nonfinite" && !each.total ? " (none)" : "";
        S.make("option", { value: i }, this.quantity, each.label + none);
      });
      this.quantity.value = this.metric;
      const foldable = this.figure.modules.filter((module) => module.count > 1);
      this.open = new Set(this.figure.tensors.length <= 36 ? foldable.map((module) => module.name) : []);
      this.fold.hidden = !foldable.length;
      this.draw();
    }

    foldAll(open) {
      this.open = new Set(open ? this.figure.modules.filter((module) => module.count > 1).map((module) => module.name) : []);
      this.draw();
    }

    rows() {
      const rows = [];
      for (const module of this.figure.modules) {
        if (module.count === 1) { rows.push({ name: this.figure.tensors[module.first], first: module.first, count: 1 }); continue; }
        rows.push({ name: module.name, module: module.name, first: module.first, count: module.count });
        if (!this.open.has(module.name)) continue;
        for (let i = module.first; i < module.first + module.count; i++) {
          rows.push({ name: this.figure.tensors[i], inside: module.name, first: i, count: 1 });
        }
      }
      return rows;
    }

    codes() {
      const key = this.which + ":" + this.metric, quantity = this.figure.quantities[this.metric];
      if (!this.decoded.has(key)) {
        const deviation = quantity.deviation ? new Int8Array(bytes(quantity.deviation)) : null;
        this.decoded.set(key, { level: levels(quantity.level), deviation });
      }
      return this.decoded.get(key);
    }

    // What a row shows in a column: of a module's tensors the one that stands out most.
    cell(row, column) {
      const { level, deviation } = this.codes(), past = this.byPast && deviation;
      let best = { tensor: row.first, level: MISSING, deviation: UNKNOWN, kind: NOTHING }, strength = -1;
      for (let tensor = row.first; tensor < row.first + row.count; tensor++) {
        const at = tensor * this.figure.columns + column, value = level[at], away = deviation ? deviation[at] : UNKNOWN;
        let own = -1;
        if (value === NONFINITE) own = 1e6;
        else if (value !== MISSING) own = past ? (away === UNKNOWN ? 0 : Math.abs(away)) : value;
        if (own > strength) {
          strength = own;
          best = { tensor, level: value, deviation: away, kind: value === NONFINITE ? BROKEN : "number" };
        }
      }
      return best;
    }

    value(level) {
      const quantity = this.figure.quantities[this.metric];
      if (level === ZERO) return 0;
      return 10 ** (quantity.low + ((level - LOWEST) / (HIGHEST - LOWEST)) * (quantity.high - quantity.low));
    }

    palette() {
      const paper = rgb("--empty"), hot = rgb("--accent"), cool = rgb("--cool"), card = rgb("--card"), ink = blend(rgb("--ink"), card, 0.2);
      const dark = matchMedia("(prefers-color-scheme: dark)").matches && !this.printing;
      const top = blend(hot, dark ? [255, 236, 200] : [70, 12, 0], 0.45), bottom = blend(cool, dark ? [220, 240, 255] : [0, 20, 50], 0.3);
      const ramp = (share, colour, end) => (share < 0.6 ? blend(paper, colour, share / 0.6) : blend(colour, end, (share - 0.6) / 0.4));
      return { above: (share) => ramp(share, hot, top), below: (share) => ramp(share, cool, bottom), ink, card, paper };
    }

    draw() {
      const figure = this.figure, quantity = figure.quantities[this.metric], rows = this.rows();
      const canDeviate = Boolean(quantity.deviation);
      this.scale.parentNode.hidden = !canDeviate;
      this.fold.textContent = this.open.size ? "fold all" : "unfold all";
      this.drawNames(rows);
      const ratio = rows.length > 400 ? 1 : Math.min(window.devicePixelRatio || 1, 2), each = Math.max(2, Math.min(ROW, Math.floor(15000 / rows.length / ratio)));
      this.each = each;
      this.shown = rows;
      this.canvas.style.height = each * rows.length + "px";
      this.map.style.marginRight = this.map.clientWidth - this.map.offsetWidth + "px";  // a scrollbar lies beside: all pictures line up
      const width = Math.max(1, Math.round(this.canvas.parentNode.clientWidth * ratio)), tall = Math.round(each * ratio), gap = each >= 8 ? Math.round(ratio) : 0;
      this.canvas.width = width;
      this.canvas.height = tall * rows.length;
      const context = this.canvas.getContext("2d"), image = context.createImageData(width, tall * rows.length), pixels = image.data;
      const palette = this.palette(), past = this.byPast && canDeviate, low = quantity.usual[0], high = Math.max(quantity.usual[1], low + 1e-9);
      // A cell reaches half a step to either side of its steps; pixels are shared out by steps, so that all pictures line up.
      const total = Math.max(S.range[1] - S.range[0], 1), share = figure.width / total, start = (figure.first - 0.5 - S.range[0]) / total;
      rows.forEach((row, r) => {
        for (let column = 0; column < figure.columns; column++) {
          if (start + (column + 1) * share <= 0 || start + column * share >= 1) continue;  // outside of the steps shown
          const cell = this.cell(row, column);
          const left = Math.max(0, Math.round((start + column * share) * width)), right = Math.min(width, Math.max(Math.round((start + (column + 1) * share) * width), left + 1));
          if (cell.kind === NOTHING) continue;
          let fill = palette.paper, texture = "";
          if (cell.kind === BROKEN) { fill = palette.ink; texture = BROKEN; }
          else if (past) {
            if (cell.deviation !== UNKNOWN) {
              const strength = Math.min(1, Math.max(0, Math.abs(cell.deviation) - FROM) / (FULL - FROM));
              fill = cell.deviation > 0 ? palette.above(strength) : palette.below(strength);
              if (cell.deviation < 0 && strength > 0.08) texture = "below";
            }
          } else if (cell.level === ZERO) fill = palette.paper;
          else fill = palette.above(0.04 + 0.96 * Math.min(1, Math.max(0, (Math.log10(this.value(cell.level)) - low) / (high - low))));
          for (let y = 0; y < tall - gap; y++) {
            for (let x = left; x < right; x++) {
              let pixel = fill;
              if (texture === BROKEN && (x + y) % (5 * Math.ceil(ratio)) < ratio) pixel = palette.card;
              if (texture === "below" && y % (4 * Math.ceil(ratio)) < ratio) pixel = palette.card;
              const at = 4 * ((r * tall + y) * width + x);
              pixels[at] = pixel[0]; pixels[at + 1] = pixel[1]; pixels[at + 2] = pixel[2]; pixels[at + 3] = 255;
            }
          }
        }
      });
      context.putImageData(image, 0, 0);
      this.drawAxis();
      this.drawLegend(palette, past, low, high);
      this.drawCaption(quantity, past);
    }

    drawNames(rows) {
      this.names.textContent = "";
      for (const row of rows) {
        const shown = row.inside ? row.name.slice(row.inside.length + 1) : row.name;
        const attributes = { title: row.name };
        let made;
        if (row.module) {
          made = S.make("button", { ...attributes, type: "button", "aria-expanded": String(this.open.has(row.module)) }, this.names, `${S.shortened(shown, 200)} · ${row.count}`);
          made.addEventListener("click", () => {
            if (!this.open.delete(row.module)) this.open.add(row.module);
            this.draw();
            const again = [...this.names.querySelectorAll("button")].find((button) => button.title === row.name);
            if (again) again.focus();
          });
        } else made = S.make("span", { ...attributes, class: row.inside ? "inside" : "" }, this.names, S.shortened(shown, 200));
        made.style.height = made.style.lineHeight = Math.max(2, Math.min(ROW, Math.floor(15000 / rows.length))) + "px";
      }
    }

    drawAxis() {
      this.axis.textContent = "";
      const width = this.axis.clientWidth, svg = S.make("svg", { height: 18, viewBox: `0 0 ${width} 18`, "aria-hidden": "true" }, this.axis);
      S.axis(svg, S.range, (step) => ((step - S.range[0]) / Math.max(S.range[1] - S.range[0], 1)) * width, 14, width);
    }

    drawLegend(palette, past, low, high) {
      this.legend.textContent = "";
      const swatch = (text, paint, width, before) => {
        const item = S.make("span", {}, this.legend, before || "");
        const canvas = S.make("canvas", { width, height: 10, "aria-hidden": "true" }, item), context = canvas.getContext("2d");
        for (let x = 0; x < width; x++) for (let y = 0; y < 10; y++) {
          context.fillStyle = `rgb(${Array.from(paint(x / width, x, y)).slice(0, 3).join(",")})`;
          context.fillRect(x, y, 1, 1);
        }
        item.appendChild(document.createTextNode(text));
      };
      if (past) {
        swatch("far above", (share) => palette.above(share), 90, "as before");
        swatch("far below its past", (share, x, y) => (y % 4 < 1 && share > 0.1 ? palette.card : palette.below(share)), 90, "as before");
      } else swatch(S.number(10 ** high) + " and more", (share) => palette.above(share), 120, S.number(10 ** low));
      swatch("NaN or infinite", (share, x, y) => ((x + y) % 5 < 1 ? palette.card : palette.ink), 22);
      S.make("span", {}, this.legend, "empty: not measured");
    }

    drawCaption(quantity, past) {
      const cell = this.figure.width === 1 ? "A cell is one step" : `A cell is ${this.figure.width.toLocaleString("en")} steps and shows the most extreme of them`;
      const how = past ? " Distance: of the logarithm from the median of the tensor's 24 cells before (highest values against highest, lowest against lowest), in robust standard deviations (of 5 % at least); coloured from 2.5 on, fully from 10." : " Colour: logarithm.";
      this.caption.textContent = `${quantity.label}: ${quantity.definition}. ${cell}; a folded module shows whichever of its tensors stands out most.${how}`;
    }

    say(x, y, box) {
      const row = this.shown[Math.floor(y / this.each)], figure = this.figure;
      const at = S.range[0] + (x / box.width) * Math.max(S.range[1] - S.range[0], 1), column = Math.floor((at + 0.5 - figure.first) / figure.width);
      if (!row || column < 0 || column >= figure.columns) return null;
      const cell = this.cell(row, column), from = figure.first + column * figure.width, to = Math.min(from + figure.width - 1, figure.last);
      const lines = [S.shortened(figure.tensors[cell.tensor], 160), from === to ? `step ${from}` : `steps ${from}–${to}`];
      if (cell.kind === NOTHING) return [...lines, "not measured"];
      if (cell.kind === BROKEN) return [...lines, "NaN or infinite elements"];
      lines.push(`${figure.quantities[this.metric].label} ${S.number(Number(this.value(cell.level).toPrecision(3)))}`);
      if (cell.deviation !== UNKNOWN) lines.push(`${(cell.deviation / 10).toFixed(1)} deviations ${cell.deviation < 0 ? "(below)" : "above its past"}`);
      return lines;
    }
  }
  S.Heatmap = Heatmap;
})(Stabkit);

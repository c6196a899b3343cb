// The report's heatmap, in the tab: keeps what was chosen while the log grows, follows TensorBoard's colours, hears clicks.
const S = globalThis.Stabkit;

export class TensorMap extends S.Heatmap {
  constructor(holder, figures, clicked) {
    super(holder, figures, "update_ratio");
    this.touched = false;
    for (const select of [this.quantity, this.optimizer]) select.addEventListener("change", () => { this.touched = true; });
    this.canvas.addEventListener("click", (event) => {
      const box = this.canvas.getBoundingClientRect(), found = this.at(event.clientX - box.left, event.clientY - box.top, box);
      if (found) clicked({ ...found, metric: this.figure.quantities[this.metric].metric, optimizer: this.figure.optimizer, name: this.figure.tensors[found.row] });
    });
  }

  // The tensor's row and the steps of the cell at a place on the canvas.
  at(x, y, box) {
    const row = this.shown[Math.floor(y / this.each)], figure = this.figure;
    const step = S.range[0] + (x / box.width) * Math.max(S.range[1] - S.range[0], 1), column = Math.floor((step + 0.5 - figure.first) / figure.width);
    if (!row || column < 0 || column >= figure.columns) return null;
    const first = figure.first + column * figure.width;
    return { row: this.cell(row, column).tensor, first, last: Math.min(first + figure.width - 1, figure.last) };
  }

  // The same log with more in it: quantity, colours and folds stay as they were chosen.
  renew(figures) {
    const open = this.open, modules = this.figure.modules.length;
    this.figures = figures;
    this.decoded.clear();
    this.choose(Math.min(this.which, figures.length - 1));
    if (this.figure.modules.length === modules) this.open = open;
    this.draw();
  }

  // Shows a quantity, unless somebody has chosen another.
  prefer(metric) {
    if (this.touched || metric === this.wanted || !this.figure.quantities.some((each) => each.metric === metric)) return;
    const open = this.open;
    this.wanted = metric;
    this.choose(this.which);
    this.open = open;
    this.draw();
  }

  palette() {
    const asked = globalThis.matchMedia;  // TensorBoard has a switch of its own, which the system's wish does not tell
    globalThis.matchMedia = (query) => (query.includes("dark") ? { matches: document.documentElement.dataset.theme === "dark" } : asked.call(globalThis, query));
    try { return super.palette(); } finally { globalThis.matchMedia = asked; }
  }
}

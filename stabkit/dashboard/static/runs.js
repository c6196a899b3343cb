// The list of runs at the left: which one is shown, which others are laid over its loss, and how each was judged.
const S = globalThis.Stabkit;
const SIGNS = { error: "■", warning: "▲", info: "○", clear: "✓" };

export class Runs {
  constructor(holder, choose, compare) {
    this.choose = choose;
    this.compare = compare;
    this.chosen = "";
    this.beside = new Set();
    this.worst = new Map();  // key -> {severity or "clear", stamp, time}
    this.runs = [];
    S.make("h2", {}, holder, "Runs");
    this.filter = S.make("input", { type: "search", placeholder: "filter", "aria-label": "Filter runs" }, holder);
    this.filter.addEventListener("input", () => this.draw());
    this.list = S.make("ul", { class: "runs" }, holder);
  }

  update(runs) {
    const before = new Map(this.runs.map((run) => [run.key, run]));
    for (const run of runs) {
      const old = before.get(run.key);
      run.live = Boolean(old && (old.stamp !== run.stamp || (old.live && Date.now() - old.changed < 15000)));
      run.changed = old && old.stamp === run.stamp ? old.changed : Date.now();
    }
    const looks = (all) => JSON.stringify(all.map((run) => [run.key, run.name, run.live]));
    const same = looks(this.runs) === looks(runs);
    this.runs = runs;
    if (!same) this.draw();
    if (runs.length && !runs.some((run) => run.key === this.chosen)) this.pick(runs[0].key);
  }

  judged(run, severity) {
    const old = this.worst.get(run.key);
    this.worst.set(run.key, { severity, stamp: run.stamp, time: Date.now() });
    if (!old || old.severity !== severity) this.draw();
  }

  // A run below a size, other than the shown one, that was not judged yet, or that has grown since.
  unjudged(bytes) {
    const old = ({ key, stamp }) => { const told = this.worst.get(key); return !told || (told.stamp !== stamp && Date.now() - told.time > 20000); };
    return this.runs.find((run) => run.bytes < bytes && run.key !== this.chosen && old(run));
  }

  pick(key) {
    this.chosen = key;
    this.draw();
    this.choose(this.runs.find((run) => run.key === key));
  }

  draw() {
    const wanted = this.filter.value.toLowerCase(), focused = document.activeElement && document.activeElement.dataset.run;
    this.filter.hidden = this.runs.length < 8;
    this.list.textContent = "";
    for (const run of this.runs) {
      if (!run.name.toLowerCase().includes(wanted)) continue;
      const item = S.make("li", run.key === this.chosen ? { class: "chosen" } : {}, this.list);
      const box = S.make("input", { type: "checkbox", title: "lay its loss over the shown run's", "aria-label": `compare ${run.name}` }, item);
      box.checked = this.beside.has(run.key) || run.key === this.chosen;
      box.disabled = run.key === this.chosen;
      box.addEventListener("change", () => {
        if (box.checked) this.beside.add(run.key); else this.beside.delete(run.key);
        this.compare();
      });
      const name = S.make("button", { type: "button", title: run.name, "data-run": run.key }, item);
      S.make("span", {}, name, S.shortened(run.name, 200));
      name.addEventListener("click", () => this.pick(run.key));
      if (run.key === focused) name.focus();
      if (run.live) S.make("span", { class: "live", title: "its log grows" }, item, "live");
      const worst = (this.worst.get(run.key) || {}).severity;
      S.make("span", { class: `severity ${worst || ""}`, title: worst || "not judged yet" }, item, SIGNS[worst] || "");
    }
  }
}

// What the tab shows of a run, and how it keeps up with logs that grow.
import { answer, get } from "./ask.js";
import { Closer, draggable } from "./closer.js";
import { MOST, compare } from "./compare.js";
import { cards, checked, firstMovers, headline, show } from "./findings.js";
import { TensorMap } from "./map.js";
import { Runs } from "./runs.js";
import { Panel } from "./tensor.js";

const S = globalThis.Stabkit;
const LOOK = 2000, NAMES = 210, CHEAP = 64e6;
const make = S.make;
const severityOf = (verdict) => (verdict.findings.length ? verdict.findings[0].severity : verdict.looked[0] ? "clear" : "");

// What of a timeline lies in a range of steps.
function within(figure, [first, last]) {
  const lines = figure.lines.map((line) => {
    const kept = line.steps.map((_, i) => i).filter((i) => line.steps[i] >= first && line.steps[i] <= last);
    return { ...line, steps: kept.map((i) => line.steps[i]), values: kept.map((i) => line.values[i]) };
  });
  const bands = figure.bands.filter((band) => band.last >= first && band.first <= last);
  return { ...figure, first, last, lines, bands: bands.map((band) => ({ ...band, first: Math.max(band.first, first), last: Math.min(band.last, last) })) };
}

export class Tab {
  constructor(body) {
    const frame = make("div", { class: "tab" }, body), main = make("main", {}, frame);
    this.runs = new Runs(make("nav", {}, frame), (run) => this.choose(run), () => this.compare());
    frame.prepend(frame.lastChild);
    this.head = make("header", { class: "verdict" }, main);
    this.said = make("p", { class: "quiet waiting" }, main, "Looking for runs …");
    const section = (title) => { const made = make("section", { hidden: "" }, main); if (title) make("h2", {}, made, title); return made; };
    const run = section("The run");
    this.closer = new Closer(run, (first, last) => this.zoom(first, last));
    this.timeline = make("figure", { class: "chart", id: "timeline" }, run);
    draggable(this.timeline, this.timeline, (x, held) => (x < NAMES && !held ? null : this.stepAt(x - NAMES, this.timeline.clientWidth - NAMES)), (first, last) => this.zoom(first, last));
    this.compared = make("figure", { class: "chart", id: "compared", hidden: "" }, this.timeline.parentNode);
    this.others = [];
    this.tensors = section("The tensors");
    this.map = null;
    this.panel = new Panel(make("aside", { class: "panel" }, main));
    this.movers = section();
    this.findings = section();
    this.checked = section();
    this.asked = 0;
    let width = 0, waiting = 0;
    new ResizeObserver(() => {
      if (main.clientWidth === width || !main.clientWidth) return;
      width = main.clientWidth;
      clearTimeout(waiting);
      waiting = setTimeout(() => this.draw(), 120);
    }).observe(main);
    window.addEventListener("stabkit-theme", () => this.draw());
    window.addEventListener("hashchange", () => show(location.hash.slice(1)));
    this.look();
  }

  async look() {
    if (document.documentElement.clientWidth && !document.hidden) {
      try {
        const { runs } = await get("runs");
        this.runs.update(runs);
        if (!runs.length) this.say("There is no log of stabkit here. Record one with stabkit.watch(model, optimizer, logdir).");
        const now = runs.find((run) => this.run && run.key === this.run.key);
        if (now && !this.busy && this.stamps && Object.values(this.stamps).some((stamp) => stamp !== now.stamp)) await this.renew();
        else if (!this.busy && !this.judging) this.judgeAnother();
      } catch (error) { this.say(`TensorBoard does not answer: ${error.message}`); }
    }
    setTimeout(() => this.look(), LOOK);
  }

  // Runs that nobody has opened are judged one at a time, as long as that is cheap, so that the list tells which to open.
  async judgeAnother() {
    const run = this.runs.unjudged(CHEAP);
    if (!run) return;
    this.judging = true;
    const told = await answer("verdict", { run: run.key }).catch(() => ({ data: null }));
    this.runs.judged(run, told.data ? severityOf(told.data) : "");
    this.judging = false;
  }

  say(text) {
    this.said.textContent = text;
    this.said.hidden = !text;
  }

  choose(run) {
    this.run = run;
    this.figure = this.all = this.verdict = this.stamps = this.window = null;
    this.panel.close();
    this.head.textContent = "";
    for (const part of [this.timeline.parentNode, this.tensors, this.movers, this.findings, this.checked]) part.hidden = true;
    if (this.map) { this.map.holder.remove(); this.map = null; }
    this.compare();
    this.say("Reading the log …");
    this.renew();
  }

  // The steps that are shown: a window of the run, or all of it where none was chosen. Until those are there that were asked
  // for, what is known of them is shown.
  zoom(first, last) {
    if (!this.all) return;
    const low = this.all.first, high = this.all.last, within = (step) => Math.min(Math.max(Math.round(step), low), high);
    this.window = first === null || (first <= low && last >= high) ? null : [within(first), Math.max(within(last), within(first) + 1)];
    if (!this.window) this.figure = this.all;
    this.draw();
    this.renew();
  }

  seen() { return this.window ? { first: this.window[0], last: this.window[1] } : {}; }

  stepAt(x, width) { return S.range[0] + Math.max(0, Math.min(x / width, 1)) * (S.range[1] - S.range[0]); }

  // Asks for all there is to show; each part appears as soon as it is there.
  async renew() {
    const mine = ++this.asked, run = this.run, wanted = () => mine === this.asked;
    this.busy = true;
    this.stamps = this.stamps || {};
    const seen = this.seen();
    if (this.all) this.closer.show(this.all, this.window, this.window && this.figure.asked !== this.window);
    const part = async (route, take, more = {}) => {
      const told = await answer(route, { run: run.key, ...more }, () => {}, wanted);
      if (!told) return;
      this.stamps[route] = told.stamp;
      take(told.data);
    };
    const failures = (await Promise.allSettled([
      part("timeline", (data) => this.takeTimeline(data), seen),
      (this.map ? Promise.resolve() : part("heatmaps", (data) => this.takeMaps(data), { quick: 1 })).then(() => wanted() && part("heatmaps", (data) => this.takeMaps(data), seen)),
      part("verdict", (data) => this.takeVerdict(data)),
    ])).filter((each) => each.status === "rejected");
    if (!wanted()) return;
    if (failures.length) this.say(failures[0].reason.message);
    this.busy = false;
    if (this.panel.shown && this.panel.shown.run === run) this.panel.tensor(run, this.panel.shown.cell, this.verdict, true);
  }

  takeTimeline(figure) {
    this.figure = { ...figure, asked: this.window };
    if (!this.window) this.all = this.figure;
    this.closer.show(this.all, this.window);
    this.drawTimeline();
    if (!this.verdict) this.say("Judging the run …");
  }

  takeVerdict(verdict) {
    const text = JSON.stringify(verdict);
    if (text === this.verdictText && this.verdict) return;
    this.verdictText = text;
    this.verdict = verdict;
    this.say("");
    this.runs.judged(this.run, severityOf(verdict));
    headline(this.head, this.run, verdict);
    firstMovers(this.movers, verdict);
    cards(this.findings, verdict, (finding) => this.panel.rule(finding));
    checked(this.checked, verdict);
    this.checked.hidden = false;
    this.prefer();
    this.drawTimeline();
    this.drawEvidence();
  }

  // The heatmap opens with the quantity that the worst finding is about.
  prefer() {
    if (!this.map || !this.verdict || !this.verdict.findings.length) return;
    const told = this.verdict.quantity;
    if (this.map.figure.quantities.some((each) => each.metric === told)) this.map.prefer(told);
  }

  takeMaps(figures) {
    if (!figures.length && this.window) { this.closer.say("no tensors were recorded in these steps"); return; }
    this.tensors.hidden = !figures.length;
    if (!figures.length) return;
    if (this.map) { this.map.figures = figures; this.setRange(); this.map.renew(figures); this.prefer(); return; }
    this.setRange(figures);
    const holder = make("div", { id: "heatmap" }, this.tensors);
    this.map = new TensorMap(holder, figures, (cell) => this.panel.tensor(this.run, { ...cell, seen: this.seen() }, this.verdict));
    const canvas = this.map.canvas;
    draggable(holder, canvas, (x) => this.stepAt(x, canvas.clientWidth), (first, last) => this.zoom(first, last));
    this.prefer();
  }

  // The steps that all pictures span.
  setRange(figures = this.map ? this.map.figures : []) {
    const drawn = this.figure ? [this.figure, ...figures] : figures;
    const first = drawn.length ? drawn[0].first : 1, last = Math.max(first + 1, ...drawn.map((each) => each.last));
    S.range = this.window || [first, last];
  }

  draw() {
    this.drawTimeline();
    if (this.map) this.map.draw();
    this.drawEvidence();
    this.panel.draw();
  }

  drawTimeline() {
    if (!this.figure || !this.figure.lines.length) return;
    this.timeline.parentNode.hidden = false;
    this.setRange();
    if (this.map) this.map.draw();
    S.timeline(this.timeline, within({ ...this.figure, bands: this.verdict ? this.verdict.bands : [] }, S.range), NAMES);
    this.drawCompared();
  }

  // Fetches the losses of the runs that are ticked.
  async compare() {
    const chosen = this.runs.runs.filter((run) => this.runs.beside.has(run.key) && run.key !== this.runs.chosen).slice(0, MOST);
    const told = await Promise.all(chosen.map((run) => answer("timeline", { run: run.key }).then((found) => ({ name: run.name, line: found.data.lines.find((line) => line.metric === "loss") }), () => null)));
    this.others = told.filter((other) => other && other.line);
    this.drawCompared();
  }

  drawCompared() {
    const own = this.all && this.all.lines.find((line) => line.metric === "loss");
    this.compared.hidden = !own || !this.others.length;
    if (!this.compared.hidden) compare(this.compared, [{ name: this.run.name, line: own }, ...this.others]);
  }

  drawEvidence() {
    if (!this.verdict) return;
    for (const plots of this.findings.querySelectorAll(".plots")) S.evidence(plots, this.verdict.evidence[Number(plots.dataset.finding)] || []);
  }
}

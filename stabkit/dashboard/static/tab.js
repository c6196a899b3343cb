// What the tab shows of a run, and how it keeps up with logs that grow.
import { answer, get } from "./ask.js";
import { MOST, compare } from "./compare.js";
import { cards, checked, firstMovers, headline, show } from "./findings.js";
import { TensorMap } from "./map.js";
import { Runs } from "./runs.js";
import { Panel } from "./tensor.js";

const S = globalThis.Stabkit;
const LOOK = 2000, NAMES = 210, CHEAP = 64e6;
const make = S.make;
const severityOf = (verdict) => (verdict.findings.length ? verdict.findings[0].severity : verdict.looked[0] ? "clear" : "");

export class Tab {
  constructor(body) {
    const frame = make("div", { class: "tab" }, body), main = make("main", {}, frame);
    this.runs = new Runs(make("nav", {}, frame), (run) => this.choose(run), () => this.compare());
    frame.prepend(frame.lastChild);
    this.head = make("header", { class: "verdict" }, main);
    this.said = make("p", { class: "quiet waiting" }, main, "Looking for runs …");
    const section = (title) => { const made = make("section", { hidden: "" }, main); if (title) make("h2", {}, made, title); return made; };
    this.timeline = make("figure", { class: "chart", id: "timeline" }, section("The run"));
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
    this.figure = this.verdict = this.stamps = null;
    this.panel.close();
    this.head.textContent = "";
    for (const part of [this.timeline.parentNode, this.tensors, this.movers, this.findings, this.checked]) part.hidden = true;
    if (this.map) { this.map.holder.remove(); this.map = null; }
    this.compare();
    this.say("Reading the log …");
    this.renew();
  }

  // Asks for all there is to show; each part appears as soon as it is there.
  async renew() {
    const mine = ++this.asked, run = this.run, wanted = () => mine === this.asked;
    this.busy = true;
    this.stamps = this.stamps || {};
    const part = async (route, take) => {
      const told = await answer(route, { run: run.key }, () => {}, wanted);
      if (!told) return;
      this.stamps[route] = told.stamp;
      take(told.data);
    };
    const failures = (await Promise.allSettled([
      part("timeline", (data) => { this.figure = data; this.drawTimeline(); if (!this.verdict) this.say("Judging the run …"); }),
      part("heatmaps", (data) => this.takeMaps(data)),
      part("verdict", (data) => this.takeVerdict(data)),
    ])).filter((each) => each.status === "rejected");
    if (!wanted()) return;
    if (failures.length) this.say(failures[0].reason.message);
    this.busy = false;
    if (this.panel.shown && this.panel.shown.run === run) this.panel.tensor(run, this.panel.shown.cell, this.verdict, true);
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
    this.tensors.hidden = !figures.length;
    if (!figures.length) return;
    this.setRange(figures);
    if (this.map) { this.map.renew(figures); return; }
    const holder = make("div", { id: "heatmap" }, this.tensors);
    this.map = new TensorMap(holder, figures, (cell) => this.panel.tensor(this.run, cell, this.verdict));
    this.prefer();
  }

  setRange(figures) {
    const last = Math.max(...figures.map((each) => each.last), this.figure ? this.figure.last : 1), first = this.figure ? this.figure.first : figures[0].first;
    S.range = [first, Math.max(last, first + 1)];
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
    if (this.map) { this.setRange(this.map.figures); this.map.draw(); } else S.range = [this.figure.first, Math.max(this.figure.last, this.figure.first + 1)];
    const bands = this.verdict ? this.verdict.bands : [];
    S.timeline(this.timeline, { ...this.figure, bands }, NAMES);
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
    const own = this.figure && this.figure.lines.find((line) => line.metric === "loss");
    this.compared.hidden = !own || !this.others.length;
    if (!this.compared.hidden) compare(this.compared, [{ name: this.run.name, line: own }, ...this.others]);
  }

  drawEvidence() {
    if (!this.verdict) return;
    for (const plots of this.findings.querySelectorAll(".plots")) S.evidence(plots, this.verdict.evidence[Number(plots.dataset.finding)] || []);
  }
}

// The panel of one tensor, or of one rule: the tensor's curves over the steps, and the page of the rule that speaks of it.
import { answer } from "./ask.js";
import { name } from "./findings.js";

const S = globalThis.Stabkit;
const make = S.make;
const HARM = { info: 1, warning: 2, error: 3 };

export class Panel {
  constructor(holder) {
    this.holder = holder;
    holder.hidden = true;
    this.asked = 0;
  }

  close() {
    this.asked++;
    this.shown = null;
    this.holder.hidden = true;
  }

  open() {
    this.holder.hidden = false;
    this.holder.textContent = "";
    const head = make("header", {}, this.holder);
    make("button", { type: "button", class: "close", title: "close", "aria-label": "close" }, head, "×").addEventListener("click", () => this.close());
    return head;
  }

  // The tensor of a clicked cell; `again` where only its curves have grown.
  async tensor(run, cell, verdict, again = false) {
    const mine = ++this.asked, wanted = () => mine === this.asked;
    this.shown = { run, cell };
    const told = await answer("tensor", { run: run.key, optimizer: cell.optimizer, row: cell.row, ...cell.seen }, () => { if (!again) this.wait(cell); }, wanted).catch((error) => ({ data: { error: error.message } }));
    if (!told || !wanted()) return;
    const head = this.open(), steps = cell.first === cell.last ? `step ${cell.first.toLocaleString("en")}` : `steps ${cell.first.toLocaleString("en")} to ${cell.last.toLocaleString("en")}`;
    if (told.data.error) { make("p", { class: "quiet" }, this.holder, told.data.error); return; }
    const tensor = told.data, title = make("h2", { class: "tensor" }, head);
    name(title, tensor.name);
    make("p", { class: "quiet" }, head, `${tensor.shape.join(" × ") || "a scalar"} · ${steps}`);
    this.plots = make("div", { class: "plots" }, this.holder);
    const first = (curve) => (curve.metric === cell.metric ? 0 : 1);
    this.curves = tensor.curves.sort((a, b) => first(a) - first(b)).map((curve) => ({ ...curve, first: cell.first, last: cell.last, severity: "info" }));
    this.draw();
    const about = related(verdict, tensor.name, cell);
    if (!about.length) make("p", { class: "quiet" }, this.holder, "No finding is about this tensor or these steps.");
    for (const finding of about) await this.page(finding, wanted, about.length > 1 && finding !== about[0]);
    if (!again) this.holder.scrollIntoView({ behavior: "smooth", block: "nearest" });
  }

  async rule(finding) {
    const mine = ++this.asked;
    this.shown = this.plots = null;
    this.open();
    await this.page(finding, () => mine === this.asked, false);
    this.holder.scrollIntoView({ behavior: "smooth", block: "nearest" });
  }

  wait(cell) {
    const head = this.open();
    name(make("h2", { class: "tensor" }, head), cell.name);
    make("p", { class: "quiet waiting" }, this.holder, "Reading its curves …");
  }

  draw() {
    if (this.plots && !this.holder.hidden) S.evidence(this.plots, this.curves);
  }

  async page(finding, wanted, folded) {
    const told = await answer("rule", { code: finding.rule }, () => {}, wanted).catch(() => null);
    if (!told || !wanted()) return;
    const rule = told.data, box = make("details", folded ? { class: "page" } : { class: "page", open: "" }, this.holder);
    const top = make("summary", {}, box);
    make("b", {}, top, `${rule.code} ${rule.name}`);
    if (finding.message) top.append(` · ${finding.message}`);
    for (const [title, paragraphs] of rule.sections) {
      make("h3", {}, box, title);
      for (const [text, asItStands] of paragraphs) make(asItStands ? "pre" : "p", {}, box, text);
    }
  }
}

// At most three findings, one a rule: those that last over the cell's steps, or nearly, and name the tensor; then those that
// only last over them, or only name it.
function related(verdict, tensor, cell) {
  const near = Math.max(10, 3 * (cell.last - cell.first + 1));
  const away = (finding) => Math.max(finding.first_step - cell.last, cell.first - finding.last_step, 0);
  const rank = (finding) => (away(finding) <= near ? 0 : 2) + (finding.tensors.includes(tensor) ? 0 : 1);
  const all = verdict ? verdict.findings.filter((finding) => rank(finding) < 3) : [];
  all.sort((a, b) => rank(a) - rank(b) || HARM[b.severity] - HARM[a.severity] || away(a) - away(b));
  return all.filter((finding, i) => all.findIndex((other) => other.rule === finding.rule) === i).slice(0, 3);
}

// The verdict in words: the headline, who moved first, each finding, and what was checked. All texts are text nodes.
const S = globalThis.Stabkit;
const SIGNS = { error: "■", warning: "▲", info: "○" };
const EVIDENCE = 8, TENSORS = 6, MOVERS = 6;
const make = S.make;

// With a capital at its beginning, unless that is a name, and a full stop at its end.
const sentence = (text) => (/^\p{L}+[,:;]?( |$)/u.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text) + (/[.!?]$/.test(text) ? "" : ".");
const count = (amount, noun) => `${amount.toLocaleString("en")} ${noun}${amount === 1 ? "" : "s"}`;

export function name(parent, text) {
  return make("code", { title: text }, parent, S.shortened(text, 120));
}

function severity(parent, of) {
  return make("span", { class: `severity ${of}` }, parent, `${SIGNS[of]} ${of}`);
}

export function headline(holder, run, verdict) {
  const head = document.createDocumentFragment(), told = make("p", { class: "run" }, head);
  name(told, run.name);
  make("span", { class: "quiet" }, told, ` · ${count(verdict.steps, "step")}`);
  const worst = verdict.findings[0], kicker = make("p", { class: "kicker" }, head), [able, asked] = verdict.looked;
  const missed = asked > able ? `; ${asked - able} could not` : "";
  const coverage = `${able} of the ${count(asked, "rule")} about this run looked${missed}.`;
  if (!worst) {
    const good = able > 0;
    make("span", { class: `severity ${good ? "clear" : "warning"}` }, kicker, good ? "✓ clear" : "▲ not judged");
    make("h1", {}, head, good ? "Nothing was found." : "This run could not be judged.");
    make("p", { class: "coverage" }, head, coverage);
  } else {
    severity(kicker, worst.severity);
    make("a", { href: "#f1" }, kicker, `${worst.rule} ${worst.name}`).addEventListener("click", jump);
    make("span", { class: "quiet" }, kicker, worst.when);
    make("h1", {}, head, sentence(worst.message));
    if (worst.advice) {
      const advice = make("p", { class: "advice" }, head);
      make("b", {}, advice, "Try");
      advice.append(worst.advice);
    }
    make("p", { class: "coverage" }, head, `In all ${verdict.amounts} in ${count(verdict.steps, "step")}. ${coverage}`);
  }
  holder.replaceChildren(head);
}

// The page has a <base>, so that a link to a fragment would leave it.
function jump(event) {
  event.preventDefault();
  show(event.currentTarget.getAttribute("href").slice(1));
}

export function show(id) {
  const card = document.getElementById(id);
  if (!card) return;
  for (const other of document.querySelectorAll(".card.target")) other.classList.remove("target");
  card.classList.add("target");
  card.scrollIntoView({ behavior: "smooth", block: "start" });
}

export function firstMovers(holder, verdict) {
  holder.textContent = "";
  const around = verdict.around;
  holder.hidden = !around;
  if (!around) return;
  const finding = verdict.findings[around.finding - 1];
  if (!finding) { holder.hidden = true; return; }
  make("h2", {}, holder, "Who moved first");
  const start = finding.first_step - around.lead;
  if (start <= 8) {
    make("p", { class: "quiet" }, holder, `${finding.rule} ${finding.name} at step ${finding.first_step} came too early: no tensor had a past to be held against.`);
    return;
  }
  make("p", { class: "quiet" }, holder, `Around ${finding.rule} ${finding.name} at step ${finding.first_step}: tensors more than ${around.limit} robust standard deviations above their own ${around.past} steps before step ${start}. An observation, not a verdict.`);
  if (!verdict.movers.length) { make("p", {}, holder, "No tensor did."); return; }
  const columns = ["tensor", "step", "lead", "quantity", "usual", "there", "deviations"];
  const body = table(holder, columns, [1, 2, 4, 5, 6]);
  for (const mover of verdict.movers.slice(0, MOVERS)) {
    const row = make("tr", {}, body), cell = (text, number) => make("td", number ? { class: "n" } : {}, row, text);
    name(cell(), mover.tensor);
    cell(mover.step.toLocaleString("en"), true);
    const lead = finding.first_step - mover.step;
    cell(lead > 0 ? `${count(lead, "step")} before` : lead < 0 ? `${count(-lead, "step")} after` : "same step", true);
    cell(mover.label);
    cell(S.number(mover.usual), true);
    cell(S.number(mover.value), true);
    cell(mover.deviation === "inf" ? "not finite" : String(Math.round(mover.deviation)), true);
  }
  if (verdict.moved > MOVERS) make("p", { class: "quiet" }, holder, `and ${count(verdict.moved - MOVERS, "more tensor")}`);
}

function table(holder, titles, numbers) {
  const made = make("table", {}, make("div", { class: "scroll" }, holder)), head = make("tr", {}, make("thead", {}, made));
  titles.forEach((title, i) => make("th", numbers.includes(i) ? { class: "n" } : {}, head, title));
  return make("tbody", {}, made);
}

export function cards(holder, verdict, explain) {
  holder.textContent = "";
  holder.hidden = !verdict.findings.length;
  if (holder.hidden) return;
  make("h2", {}, holder, "Findings");
  verdict.findings.forEach((finding, i) => card(holder, verdict, finding, i, explain));
  if (verdict.more) make("p", { class: "quiet" }, holder, `and ${count(verdict.more, "more finding")}; stabkit analyze prints them all`);
}

function card(holder, verdict, finding, place, explain) {
  const box = make("article", { class: `card ${finding.severity}`, id: `f${place + 1}` }, holder);
  const kicker = make("p", { class: "kicker" }, box);
  make("span", { class: "place" }, kicker, String(place + 1));
  severity(kicker, finding.severity);
  const rule = make("button", { type: "button", class: "link", title: "the rule's page" }, kicker, `${finding.rule} ${finding.name}`);
  rule.addEventListener("click", () => explain(finding));
  make("span", { class: "quiet" }, kicker, finding.when);
  make("h3", {}, box, sentence(finding.message));
  make("div", { class: "plots", "data-finding": String(place) }, box);
  evidence(box, finding.evidence);
  const list = make("dl", {}, box), row = (label) => { make("dt", {}, list, label); return make("dd", {}, list); };
  if (finding.tensors.length) names(row("where"), finding.tensors, finding.tensor_count);
  const around = verdict.around, mover = around && around.finding === place + 1 && verdict.movers[0];
  if (mover) {
    const first = row("first mover"), lead = finding.first_step - mover.step;
    name(first, mover.tensor);
    first.append(` by its ${mover.label.toLowerCase()}, at step ${mover.step.toLocaleString("en")}${lead > 0 ? `, ${count(lead, "step")} before` : ""}`);
  }
  if (finding.lead) row("lead").append(`${count(finding.lead, "step")} from the first sign to the worst, at step ${finding.event_step.toLocaleString("en")}`);
  if (finding.restart) row("restart").append(finding.restart);
  if (finding.advice) make("strong", {}, row("try"), finding.advice);
  if (finding.confidence) {
    const [right, low, high] = finding.confidence.map((value) => `${Math.round(100 * value)} %`);
    row("trust").append(`right in ${right} of the cases it was measured on (${low} to ${high})`);
  }
  if (finding.consequences.length) consequences(row("led to"), finding.consequences);
  if (!list.childElementCount) list.remove();
}

function names(holder, all, total) {
  const put = (parent, some) => some.forEach((each, i) => { if (i) parent.append(", "); name(parent, each); });
  put(holder, all.slice(0, TENSORS));
  if (total <= TENSORS) return;
  const rest = make("details", {}, holder);
  holder.insertBefore(document.createTextNode(" "), rest);
  make("summary", {}, rest, `and ${(total - TENSORS).toLocaleString("en")} more`);
  put(rest, all.slice(TENSORS));
  if (total > all.length) rest.append(" …");
}

function evidence(holder, items) {
  if (!items.length) return;
  const shown = items.slice(0, EVIDENCE), any = (key) => shown.some((item) => item[key] !== null && item[key] !== "");
  const columns = ["metric", "step", "observed", "expected", "tensor", "note"].filter(any), numeric = ["step", "observed", "expected"];
  const titles = columns.map((key) => (key === "metric" ? "quantity" : key));
  const body = table(holder, titles, columns.map((key, i) => (numeric.includes(key) ? i : -1)));
  for (const item of shown) {
    const row = make("tr", {}, body);
    for (const key of columns) {
      const cell = make("td", numeric.includes(key) ? { class: "n" } : {}, row);
      if (item[key] === null) continue;
      if (key === "tensor") name(cell, item[key]);
      else cell.textContent = key === "step" ? item.step.toLocaleString("en") : numeric.includes(key) ? S.number(item[key]) : item[key];
    }
  }
  if (items.length > shown.length) make("p", { class: "quiet" }, holder, `and ${count(items.length - shown.length, "more number")}`);
}

function consequences(holder, all) {
  const list = make("ul", {}, holder);
  for (const each of all) {
    const item = make("li", {}, list);
    severity(item, each.severity);
    item.append(` ${each.rule} ${each.name} at step ${each.first_step.toLocaleString("en")}: ${each.message}`);
    if (each.consequences.length) consequences(item, each.consequences);
  }
}

export function checked(holder, verdict) {
  holder.textContent = "";
  make("h2", {}, holder, "What was checked");
  const { clear, blind, failed, absent } = verdict.checked;
  const part = (title, text) => { make("h3", {}, holder, title); make("p", { class: "quiet" }, holder, text); };
  part("Looked, and found nothing", clear.join(", ") || "None.");
  for (const [title, reasons] of [["Could not look", blind], ["Failed: a fault of stabkit, not of your run", failed]]) {
    const entries = Object.entries(reasons);
    if (!entries.length) continue;
    make("h3", {}, holder, title);
    const list = make("ul", {}, holder);
    for (const [reason, rules] of entries) make("span", { class: "quiet" }, make("li", {}, list, rules.join(", ")), ` — ${reason}`);
  }
  if (absent.length) part("Not about this run", absent.join(", "));
  if (verdict.notes.length) {
    make("h3", {}, holder, "Notes on the log");
    const list = make("ul", {}, holder);
    for (const note of verdict.notes) make("li", {}, list, S.shortened(note, 2000));
  }
}

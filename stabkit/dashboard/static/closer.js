// A closer look: a stretch of steps is chosen by dragging over a picture, or typed.
const S = globalThis.Stabkit;
const LEAST = 4;  // pixels, below which a drag is a click

// Dragging over `target` chooses; `stepAt(x)` is the step at a place of it. What is chosen is shaded in `holder`.
export function draggable(holder, target, stepAt, chosen) {
  let from = null, shade = null, dragged = false;
  const at = (event) => event.clientX - target.getBoundingClientRect().left;
  const end = () => { if (shade) shade.remove(); from = shade = null; };
  target.addEventListener("pointerdown", (event) => {
    dragged = false;
    if (event.button === 0 && stepAt(at(event)) !== null) { from = at(event); event.preventDefault(); }
  });
  target.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const to = at(event), frame = holder.getBoundingClientRect(), inside = target.getBoundingClientRect();
    if (!shade) {
      if (Math.abs(to - from) < LEAST) return;
      target.setPointerCapture(event.pointerId);
      shade = S.make("div", { class: "shade" }, holder);
      dragged = true;
    }
    const left = Math.max(0, Math.min(from, to)), right = Math.min(inside.width, Math.max(from, to));
    Object.assign(shade.style, { left: `${left + inside.left - frame.left}px`, width: `${right - left}px`, top: `${inside.top - frame.top}px`, height: `${inside.height}px` });
  });
  target.addEventListener("pointerup", (event) => {
    const began = from, done = shade !== null, width = target.getBoundingClientRect().width;
    end();
    if (!done) return;
    target.dispatchEvent(new Event("pointerleave"));  // what the pointer was over is there no more
    const steps = [began, at(event)].map((x) => stepAt(Math.max(0, Math.min(x, width - 1)), true)).sort((a, b) => a - b);
    chosen(...steps);
  });
  target.addEventListener("pointercancel", end);
  window.addEventListener("keydown", (event) => { if (event.key === "Escape") end(); });
  target.addEventListener("click", (event) => { if (dragged) event.stopImmediatePropagation(); dragged = false; }, true);
}

// The two numbers that say which steps are shown, for who would rather type, and the way back to all of them.
export class Closer {
  constructor(holder, chosen) {
    this.form = S.make("form", { class: "tools closer" }, holder);
    const number = (label) => S.make("input", { type: "number", required: "", id: `closer-${label}` }, S.make("label", {}, this.form, label === "first" ? "steps" : "to"));
    this.first = number("first");
    this.last = number("last");
    S.make("button", {}, this.form, "look closer");
    this.back = S.make("button", { type: "button", id: "closer-back" }, this.form, "all steps");
    this.said = S.make("span", { class: "quiet", role: "status" }, this.form);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      chosen(...[this.first.valueAsNumber, this.last.valueAsNumber].sort((a, b) => a - b));
    });
    this.back.addEventListener("click", () => chosen(null));
  }

  // What is shown: `window` of the steps of the timeline `all`, or all of them where it is null.
  show(all, window, busy) {
    const whole = [all.first, all.last], typing = this.form.contains(document.activeElement) && document.activeElement.tagName === "INPUT";
    if (!typing || busy) [this.first.value, this.last.value] = window || whole;
    for (const input of [this.first, this.last]) [input.min, input.max] = whole;
    this.back.hidden = !window;
    this.say(busy ? "reading these steps …" : window ? "" : "or drag over a picture");
  }

  say(text) { this.said.textContent = text; }
}

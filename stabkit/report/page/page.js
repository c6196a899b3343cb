// Puts the figures into the page, and again when its width or its colours change.
"use strict";
(function (S) {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const timeline = document.getElementById("timeline"), holder = document.getElementById("heatmap");
  const margin = () => (window.innerWidth <= 640 ? 110 : 210);
  const last = Math.max(figures.timeline.last, ...figures.heatmaps.map((each) => each.last));
  S.range = [figures.timeline.first, Math.max(last, figures.timeline.first + 1)];
  const map = holder && figures.heatmaps.length ? new S.Heatmap(holder, figures.heatmaps, figures.quantity) : null;

  function draw() {
    if (timeline) S.timeline(timeline, figures.timeline, margin());
    for (const plots of document.querySelectorAll(".plots")) {
      S.evidence(plots, figures.evidence[Number(plots.dataset.finding)] || []);
    }
    if (map) map.draw();
  }

  draw();
  document.documentElement.dataset.drawn = "yes";
  let width = document.documentElement.clientWidth, waiting = 0;
  window.addEventListener("resize", () => {
    if (document.documentElement.clientWidth === width) return;
    width = document.documentElement.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(draw, 120);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
    window.addEventListener(event, () => {
      document.documentElement.toggleAttribute("data-printing", printing);  // the paper's colours and width, before they are measured
      if (map) map.printing = printing;
      for (const details of document.querySelectorAll("details")) details.open = printing;
      draw();
    });
  }
})(Stabkit);

// Draws the figures of a page on two runs, and again when its width or its colours change.
"use strict";
(function (S) {
  const figures = JSON.parse(document.getElementById("figures").textContent);

  function draw() {
    for (const frame of document.querySelectorAll("[data-pair]")) S.curves(frame, figures[Number(frame.dataset.pair)]);
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
  for (const event of ["beforeprint", "afterprint"]) window.addEventListener(event, draw);
})(Stabkit);

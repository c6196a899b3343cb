// The Stability tab. TensorBoard loads this into a frame of its own and calls render().
const SCRIPTS = ["chart.js", "heatmap.js", "curves.js"], STYLES = ["page.css", "style.css"];

const load = (tag, attributes) => new Promise((resolve, reject) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.addEventListener("load", resolve);
  element.addEventListener("error", () => reject(new Error(`${attributes.src || attributes.href} cannot be loaded`)));
  document.head.append(element);
});

export async function render() {
  document.documentElement.lang = "en";
  follow_theme();
  for (const href of STYLES) await load("link", { rel: "stylesheet", href });
  for (const src of SCRIPTS) await load("script", { src });
  // A const of a classic script is no property of the window; modules that come later find it there.
  globalThis.Stabkit = Stabkit;  // eslint-disable-line no-undef
  const { Tab } = await import("./tab.js");
  new Tab(document.body);
}

// TensorBoard's own switch decides, which marks its body; standing alone, the system's wish does.
function follow_theme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let outer = null;
  try { outer = window.parent !== window ? window.parent.document.body : null; } catch { outer = null; }
  const apply = () => {
    const dark = outer ? outer.classList.contains("dark-mode") : system.matches;
    if (document.documentElement.dataset.theme === (dark ? "dark" : "light")) return;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    window.dispatchEvent(new Event("stabkit-theme"));
  };
  apply();
  system.addEventListener("change", apply);
  if (outer) new MutationObserver(apply).observe(outer, { attributes: true, attributeFilter: ["class"] });
}

"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

function region(part, label) {
  part.setAttribute("role", "region");
  part.ariaLabel = label;
}

function levelled(title, level) {
  title.setAttribute("role", "heading");
  title.setAttribute("aria-level", String(level));
}

// What Swagger UI leaves out for those who do not see it, or use no mouse. It draws parts of the page again at any time.
const MENDS = [
  ["h3.opblock-tag", (title) => levelled(title, 2)],
  ["h4", (title) => levelled(title, 3)],
  ["h5", (title) => levelled(title, 4)],
  [".information-container", (part) => region(part, "About this API")],
  [".scheme-container", (part) => region(part, "Server and token")],
  [".opblock-summary-control a[href]", (link) => link.removeAttribute("href")],  // within a button, which does the same
  ["select:not([aria-label])", (select) => select.setAttribute("aria-label", "Choose what is shown")],
  ["textarea:not([aria-label])", (text) => text.setAttribute("aria-label", "Request body")],
  ["input:not([aria-label])", (input) => input.setAttribute("aria-label", input.placeholder || "Value")],
  ["pre:not([tabindex]), .table-container:not([tabindex])", (part) => { part.tabIndex = 0; }],
];
const page = document.getElementById("swagger-ui");
const mend = () => MENDS.forEach(([which, how]) => page.querySelectorAll(which).forEach(how));
new MutationObserver(mend).observe(page, { childList: true, subtree: true });

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  defaultModelsExpandDepth: -1,
  syntaxHighlight: false,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});

// Begins the parts that stand in a chapter: each is given the values that the chapter recorded, and shows them where these stand.
//   begin({ sampling, ring })     functions by kind: data -> an element

import { element } from "./make.js";

export function begin(kinds) {
  for (const box of document.querySelectorAll(".part")) {
    const data = JSON.parse(box.querySelector("script").textContent);
    box.append(element("p", { className: "lead", textContent: box.getAttribute("aria-label") }), kinds[box.dataset.kind](data));
    box.classList.add("begun");
  }
}

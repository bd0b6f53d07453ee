// What could stand at a place: a row for each token, to be pressed.
//   choices({ ids, own, shaped, now, name, onpick })
// own [V] are the model's chances, in grey; shaped [V] what settings make of them, in colour, 0 for what they cut; now is the token that
// stands there. name: id -> text; onpick null: there is no room for another.

import { element, percent } from "./make.js";

export function choices({ ids, own, shaped, now, name, onpick }) {
  const most = ids.reduce((most, id) => Math.max(most, own[id], shaped[id]), 0);
  const bar = (className, chance) => {
    const made = element("i", { className });
    made.style.width = `${(100 * chance) / most}%`;
    return made;
  };
  return ids.map((id) => element("button", {
      type: "button", className: `choice${id === now ? " strong" : ""}${shaped[id] ? "" : " cut"}`, disabled: !onpick, onclick: () => onpick(id),
      ariaLabel: `${name(id)}: ${percent(own[id])}, with your settings ${percent(shaped[id])}`,
    },
    element("span", { className: "name", textContent: name(id) }),
    element("span", { className: "meter" }, bar("own", own[id]), bar("shaped", shaped[id])),
    element("span", { className: "said", textContent: shaped[id] ? percent(shaped[id]) : "cut" })));
}

// Sampling by hand: sliders over the model's own logits, and what each leaves to chance.
//   sampling({ pieces: [V texts], places: [{ text, logits: [V] }] })

import { choice, slider } from "./controls.js";
import { element, visible } from "./make.js";
import { softmax } from "./ops.js";
import { draw, largest, shape } from "./sampler.js";

const SHOWN = 12;

export function sampling({ pieces, places }) {
  const plain = places.map(({ logits }) => softmax(logits));
  let place = 0;
  const range = (count, step) => Array.from({ length: count }, (_, n) => Number((n * step).toFixed(2)));
  const off = (name) => (value) => (value ? name(value) : "off");
  const hundredths = (value) => value.toFixed(2);
  const temperature = slider({ label: "temperature", values: range(21, 0.1), at: 10, say: (t) => t.toFixed(1), onmove: show });
  const topK = slider({ label: "top-k", values: [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 0], at: 13, say: off(String), onmove: show });
  const topP = slider({ label: "top-p", values: range(21, 0.05).slice(1), at: 19, say: (p) => (p < 1 ? hundredths(p) : "off"), onmove: show });
  const minP = slider({ label: "min-p", values: range(26, 0.02), at: 0, say: off(hundredths), onmove: show });
  const where = choice({ label: "what was read", names: places.map(({ text }) => `… ${text}`), onpick: (n) => ((place = n), show()) });
  const list = element("ol", { className: "chances" });
  const sentence = element("p", { className: "says", ariaLive: "polite" });
  const drawn = element("p", { className: "drawn" });
  const ten = () => Array.from({ length: 10 }, () => visible(pieces[draw(chances, Math.random())])).join("  ");
  const button = element("button", { type: "button", textContent: "draw ten", onclick: () => (drawn.textContent = ten()) });
  let chances = [];

  function row(name, was, is) {
    const bar = (kind, share) => {
      const made = element("i", { className: kind });
      made.style.width = `${100 * share}%`;
      return made;
    };
    const made = element("li", {}, element("b", { textContent: name }), element("span", {}, bar("was", was), bar("is", is)), element("em", { textContent: is ? `${(100 * is).toFixed(1)} %` : "never" }));
    made.dataset.chance = is;
    return made;
  }

  function show() {
    const before = plain[place];
    chances = shape(places[place].logits, { temperature: temperature.value(), topK: topK.value(), topP: topP.value(), minP: minP.value() });
    const order = largest(before, before.length), best = order.slice(0, SHOWN), rest = order.slice(SHOWN);
    const sum = (of) => rest.reduce((total, n) => total + of[n], 0);
    list.replaceChildren(...best.map((n) => row(visible(pieces[n]), before[n], chances[n])), row(`${rest.length.toLocaleString("en")} others`, sum(before), sum(chances)));
    const left = chances.filter((chance) => chance > 0).length;
    const entropy = chances.reduce((total, chance) => total - (chance > 0 ? chance * Math.log(chance) : 0), 0);
    sentence.textContent = `${left.toLocaleString("en")} of ${pieces.length.toLocaleString("en")} pieces can be drawn; there are effectively ${Math.exp(entropy).toFixed(1)} to choose from.`;
    drawn.textContent = "";
  }

  show();
  return element("div", { className: "sampling" }, where.node, element("div", { className: "sliders" }, temperature.node, topK.node, topP.node, minP.node), list, sentence, element("div", { className: "buttons" }, button, drawn));
}

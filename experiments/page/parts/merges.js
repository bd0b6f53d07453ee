// The bundled model's tokenizer, merge by merge, on a text of the reader's.
//   merges({ pieces: [V texts], special: [ids], examples: [texts] })

import { choice, steps } from "./controls.js";
import { element } from "./make.js";
import { readTokenizer } from "./tokenizer.js";

const LONGEST = 60; // characters

export function merges({ pieces, special, examples }) {
  const tokenizer = readTokenizer({ pieces, special });
  const row = element("ol", { className: "symbols" });
  const input = element("input", { type: "text", maxLength: LONGEST, ariaLabel: "your text", spellcheck: false, autocomplete: "off", oninput: () => (names.pick(-1), read(input.value)) });
  const names = choice({ label: "an example", names: examples, onpick: (n) => read((input.value = examples[n])) });
  const control = steps({ label: "merges", count: 0, say, onstep: show });
  let states = [[]], tokens = [];

  /** The left one of the pair that is merged next; -1 behind the last merge. */
  const next = (n) => (n + 1 < states.length ? states[n].findIndex((symbol, at) => symbol !== states[n + 1][at]) : -1);

  function say(n) {
    const at = next(n), symbols = states[n];
    if (!symbols.length) return "Type something.";
    if (at < 0) return `No two neighbours together are a piece. ${[...input.value].length} characters have become ${tokens.length} tokens.`;
    return `${symbols.length} symbols. Of all neighbours that together are a piece, those with the best score are next: “${symbols[at]}” and “${symbols[at + 1]}” become “${states[n + 1][at]}”.`;
  }

  function show(n) {
    const at = next(n);
    if (at >= 0) {
      row.replaceChildren(...states[n].map((symbol, place) => element("li", { className: place === at || place === at + 1 ? "pair" : "" }, element("b", { textContent: symbol }))));
      return;
    }
    row.replaceChildren(...tokens.map((token) => {
      const made = element("li", {}, element("b", { textContent: pieces[token] }), element("small", { textContent: token }));
      made.dataset.token = token;
      return made;
    }));
  }

  function read(text) {
    states = text ? Array.from(tokenizer.merges(`▁${text}`.replaceAll(" ", "▁")), (symbols) => [...symbols]) : [[]];
    tokens = tokenizer.encode(text);
    control.to(states.length - 1);
  }

  input.value = examples[0];
  read(input.value);
  return element("div", { className: "merges" }, names.node, input, control.node, row);
}

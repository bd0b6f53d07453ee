// Drafts that are accepted and refused, pass by pass.
//   drafts({ texts: [{ name, prompt, first, passes: [{ drafts: [texts], right, own }] }] })
// first: what reading the prompt gave. right: how many of a pass's drafts the model has drawn too; own: its own token behind them.

import { choice, steps } from "./controls.js";
import { element, word } from "./make.js";

export function drafts({ texts }) {
  const written = element("ol", { className: "drafted", ariaLabel: "the answer so far" });
  let text = texts[0];
  const which = choice({ label: "which text, and who guesses", names: texts.map(({ name }) => name), onpick: (n) => ((text = texts[n]), control.to(text.passes.length)) });
  const control = steps({ label: "passes", count: 0, say, onstep: show });
  const quoted = (pieces) => pieces.map((piece) => `“${word(piece)}”`).join(" ");
  const tokens = (passes) => passes.reduce((sum, { right }) => sum + right + 1, 0);

  function say(at) {
    if (!at) return `The prompt is read: “…${text.prompt.slice(-40)}”. It gives the first token, ${quoted([text.first])}.`;
    const { drafts, right, own } = text.passes[at - 1], sofar = tokens(text.passes.slice(0, at));
    const guessed = drafts.length ? `${quoted(drafts)} ${drafts.length > 1 ? "are" : "is"} guessed, and ${right} of ${drafts.length} ${right === 1 ? "is" : "are"} right` : "the last token is new, so nothing is guessed";
    return `Pass ${at}: ${guessed}. The model's own token behind is ${quoted([own])}. ${sofar} tokens in ${at} ${at === 1 ? "pass" : "passes"}, ${(sofar / at).toFixed(2)} a pass.`;
  }

  function show(at) {
    const chip = (kind, piece) => element("li", { className: kind, textContent: piece.replaceAll("\n", "↵"), title: { right: "a draft that was right", wrong: "a draft that was refused, or stood behind one", own: "the model's own token" }[kind] });
    const pass = ({ drafts, right, own }, now) => {
      const chips = drafts.slice(0, right).map((piece) => chip("right", piece));
      if (now) chips.push(...drafts.slice(right).map((piece) => chip("wrong", piece)));
      chips.push(chip("own", own));
      if (now) for (const one of chips) one.classList.add("now");
      return chips;
    };
    written.replaceChildren(chip("own", text.first), ...text.passes.slice(0, at).flatMap((one, n) => pass(one, n === at - 1)));
  }

  control.to(text.passes.length);
  return element("div", { className: "drafts" }, which.node, control.node, written, element("p", { className: "quiet", textContent: "blue: drafts that were right; struck out: drafts of this pass that are thrown away; grey: the model's own" }));
}

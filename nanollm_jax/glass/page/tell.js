// A whole story, part after part, around one token that is picked.
//   const told = tell(root, story)       fills root; told.pick(t) picks a token, told.onkey(event) what a key asks for
// Left and right anywhere in root pick the token before and behind.

import { chips } from "./chips.js";
import { heads } from "./heads.js";
import { lens } from "./lens.js";
import { element, percent, size, visible, word } from "./make.js";
import { bars, line } from "./plot.js";
import { shares } from "./shares.js";

function section(title, says, ...children) {
  return element("section", {}, element("h2", { textContent: title }), element("p", { className: "lead", textContent: says }), ...children);
}

const count = (number) => Number(number).toLocaleString("en");
const tokens = (number) => `${count(number)} token${number === 1 ? "" : "s"}`;

function lasting(seconds) {
  return seconds < 1e-3 ? `${(seconds * 1e6).toPrecision(3)} µs` : seconds < 1 ? `${(seconds * 1e3).toPrecision(3)} ms` : `${seconds.toPrecision(3)} s`;
}

/** The text, the tokens that it is made of, and what else could have stood there. */
function textPart(story, pick) {
  const text = chips({ label: "The text, a chip for each token", onpick: pick });
  text.show(Array.from({ length: story.size }, (_, t) => story.token(t)));
  const sentence = element("p", { className: "picked" });
  const list = element("div", { className: "plot" });
  const plot = bars(list, { label: "The likeliest tokens in its place" });
  const curve = element("div", { className: "plot" });
  const surprise = line(curve, { label: "Surprise of each token", onpick: pick });
  const values = Array.from({ length: story.size }, (_, t) => story.token(t).surprise);
  function show(t) {
    const token = story.token(t), found = story.alternatives(t);
    text.pick(t);
    surprise(values, t);
    const said = element("b", { textContent: word(token.text || token.name) });
    sentence.replaceChildren(said, !found ? " is the first token: nothing came before it." : token.given ? ` was given; the model gave it ${percent(token.chance)}.` : ` was written with ${percent(token.chance)}.`);
    const rows = (found?.best ?? []).map((one) => ({ label: visible(one.word), value: one.chance, said: percent(one.chance), strong: one.id === story.head.ids[t] }));
    if (found && !rows.some(({ strong }) => strong)) rows.push({ label: visible(token.text || token.name), value: token.chance, said: percent(token.chance), strong: true });
    plot(rows);
  }
  const key = element("p", { className: "legend" }, element("span", {}, element("i", { className: "scale" }), "expected to surprising"), element("span", { className: "given", textContent: "in grey: the prompt" }));
  const part = section("The text", "Each chip is one token, the warmer the more it surprised the model. Pick one: everything below is about how it was chosen. Chances are the model's own, before temperature and cuts.",
    element("div", { className: "text" }, element("div", {}, text.node, key), element("aside", {}, sentence, list)),
    element("h3", { textContent: "Surprise: minus the logarithm of each token's probability" }), curve);
  return { part, show };
}

/** Bytes and time. */
function costPart(story) {
  const { bytes, times, timings } = story.head;
  const list = element("div", { className: "plot" });
  const known = Object.fromEntries((times ?? []).map((entry) => [entry.part, entry]));
  const names = { embedding: "embedding", norm: "norms", attention: "attention", cache: "cache", mlp: "MLPs", logits: "vocabulary" };
  const parts = Object.entries(bytes).filter(([, value]) => value).sort((a, b) => b[1] - a[1]);
  bars(list, { label: "Bytes that one more token has to read" })(parts.map(([part, value]) => ({ label: names[part], value, said: size(value) })));
  const children = [element("h3", { textContent: "Bytes that have to move for one more token" }), list];
  if (times) {
    const spent = element("div", { className: "plot" });
    bars(spent, { label: "Time of one token by part" })(times.filter(({ seconds }) => seconds > 0).map(({ part, seconds, limit_share }) => ({ label: part, value: seconds, said: lasting(seconds) + (limit_share === null ? "" : `, ${percent(limit_share)} of the limit`) })));
    children.push(element("h3", { textContent: "Time of one token, from a trace of the same sizes" }), spent);
  }
  const total = parts.reduce((sum, [, value]) => sum + value, 0);
  const facts = [
    [tokens(timings.prompt_tokens), `read at ${count(Math.round(timings.prompt_rate))} a second`],
    [tokens(timings.new_tokens), `written at ${count(Math.round(timings.new_rate))} a second, ${size(total * timings.new_rate)} a second`],
    [lasting(timings.first_token_seconds), "until the first token"],
    [lasting(timings.compile_seconds), "of it making programs ready"],
  ];
  const table = element("dl", { className: "facts" }, ...facts.map(([figure, words]) => element("div", {}, element("dt", { textContent: figure }), element("dd", { textContent: words }))));
  const says = times ? "Where the time went, and what a step has to read from memory: the larger the model, the more of a token's time is reading." : "A token has to read every weight once; how fast it can be is how fast memory is. Times are of this run, which was watched.";
  return section("What it cost", says, table, ...children);
}

function notes(story) {
  const { head } = story;
  const settings = Object.entries(head.settings).map(([name, value]) => `${name} ${typeof value === "number" ? Number(value.toPrecision(6)) : value}`).join(" · ");
  const { machine } = head;
  const lines = [
    ["Settings", settings],
    ["Model", `${head.name} · ${count(head.model.parameters)} parameters, ${size(head.model.bytes)} in ${head.model.dtype} · ${head.model.layers} layers of width ${head.model.width}, ${head.model.heads} heads${head.adapter ? `, with the adapter ${head.adapter}` : ""}`],
    ["Machine", `${machine.cpu}, ${machine.cores} cores · ${machine.device} · Python ${machine.python} · jax ${machine.jax} · nanollm_jax ${machine.nanollm_jax}`],
    ["Numbers", head.recomputed.length ? `Read off one more pass over the finished text, because they were not kept: ${head.recomputed.join(", ")}. The rest is made of what the compiled loop computed while it wrote.` : "All are made of what the compiled loop computed while it wrote: nothing was run again."],
    ...(head.changed.length ? [["Changed", `This text was written with changes to ${head.changed.join(", ")}.`]] : []),
    ...(head.left.length ? [["Left out", head.left.join(" ")]] : []),
  ];
  return element("footer", {}, element("dl", {}, ...lines.flatMap(([name, words]) => [element("dt", { textContent: name }), element("dd", { textContent: words })])));
}

export function tell(root, story) {
  const { head } = story;
  let now = -1;
  const step = element("output", { className: "step" });
  const go = (label, by) => element("button", { type: "button", textContent: label, ariaLabel: by < 0 ? "The token before" : "The token behind", onclick: () => pick(now + by) });
  const bar = element("nav", { className: "stepper", ariaLabel: "Picked token" }, go("‹", -1), step, go("›", 1));
  const depths = lens(story, { onpick: pick });
  const parts = [textPart(story, pick)];
  parts.push({ show: depths.show, part: section("From layer to layer", "What the model would have said had it stopped after each layer. Read a column from the bottom up: the answer comes into sight.", depths.node) });
  const looked = heads(story, { onpick: pick });
  parts.push({ show: looked.show, part: section("Where it looked", "Every head reads from some tokens before. The strongest places of each are kept; pick a head, and the text shows what it read.", looked.node) });
  if (story.shares(1)) {
    const wrote = shares(story);
    parts.push({ show: wrote.show, part: section("Who wrote it", "A token's score is a sum: what each head and MLP wrote toward it, and away from the best other one.", wrote.node) });
  }

  function pick(t, ...more) {
    if (t < 0 || t >= story.size) return;
    now = t;
    const token = story.token(t);
    step.replaceChildren(element("b", { textContent: word(token.text || token.name) }), ` ${t + 1} of ${story.size}${t ? `, ${percent(token.chance)}` : ""}`);
    for (const { show } of parts) show(t, ...more);
  }

  const title = element("header", {}, element("p", { className: "brand", textContent: "nanollm_jax" }), element("h1", { textContent: "How this text was written" }),
    element("p", { className: "lead", textContent: `By ${head.name}, with ${count(head.model.parameters)} parameters: ${tokens(head.given)} of prompt, ${tokens(story.size - head.given)} written, one after the other.` }));
  root.replaceChildren(title, ...parts.map(({ part }) => part), costPart(story), notes(story), bar);
  const onkey = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    event.preventDefault();
    pick(now + by);
  };
  root.onkeydown = onkey;
  // what is most worth a look: the most surprising token that was written
  let first = Math.min(head.given, story.size - 1);
  for (let t = first; t < story.size; t++) if (story.token(t).surprise > story.token(first).surprise) first = t;
  pick(first);
  return { pick, onkey };
}

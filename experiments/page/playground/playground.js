// The page of the bundled model: what is typed goes in, a story comes out, and everything on the way can be looked at.
// What runs the model is in ../model/; what draws is, for the most part, that of the glass box's page.

import { board, partName } from "./board.js";
import { chips } from "./chips.js";
import { choices } from "./choices.js";
import { heads } from "./heads.js";
import { lens } from "./lens.js";
import { liveText } from "./live.js";
import { element, percent, size, visible, word } from "./make.js";
import { unpack } from "./model.js";
import { softmax } from "./ops.js";
import { draw, largest, shape, uniform } from "./sampler.js";
import { readTokenizer } from "./tokenizer.js";

const SHOWN = 10; // of the tokens that could come
const SLICE = 30; // milliseconds of computing before the page may draw again
const EXAMPLES = ["Once upon a time", "Lily lost her red ball", "The dragon was very hungry", "“I am not afraid,” said the mouse"];
const by = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");

function numbersOf(node) {
  const letters = atob(node.textContent), bytes = new Uint8Array(letters.length);
  for (let n = 0; n < letters.length; n++) bytes[n] = letters.charCodeAt(n);
  node.remove(); // they are needed once
  return bytes.buffer;
}

const told = JSON.parse(by("head").textContent);
const model = unpack(told, numbersOf(by("bytes")));
const tokenizer = readTokenizer(told.tokenizer);
const { positions, bos, eos } = told.config;
const longest = Math.max(...tokenizer.pieces.map((piece) => piece.length));
const live = liveText(model, tokenizer);
const typed = chips({ label: "The text, a chip for each token", onpick: pick });
by("chips").append(typed.node);
let picked = 0; // the token whose choice is shown; the one behind the last is what comes next
let views = null, chosen; // of what is inside, while nothing is written; the head that is shown large
let job = 0; // the number of the work that runs, or ran last
let asked = []; // the tokens that were given, those too that a reading that was stopped did not come to

// What is set
const control = {};
for (const [name, label, range, shown] of [
  ["temperature", "temperature", { min: 0, max: 2, step: 0.05, value: 0.7 }, (value) => (value ? value.toFixed(2) : "best")],
  ["topK", "top-k", { min: 0, max: 100, step: 1, value: 0 }, (value) => value || "all"],
  ["topP", "top-p", { min: 0.05, max: 1, step: 0.01, value: 0.9 }, (value) => value.toFixed(2)],
]) {
  const input = element("input", { type: "range", id: name, ...range }), output = element("output");
  const tell = () => (output.textContent = input.ariaValueText = shown(Number(input.value)));
  input.oninput = () => {
    tell();
    showChoices();
    showCall();
  };
  tell();
  control[name] = input;
  by("sliders").append(element("label", {}, label, input, output));
}
for (const [name, label, range] of [["seed", "seed", { min: 0, max: 4294967295, value: 4 }], ["most", "tokens", { min: 1, max: positions, value: 60 }]]) {
  control[name] = element("input", { type: "number", id: name, step: 1, ...range, oninput: showCall });
  by("sliders").append(element("label", {}, label, control[name]));
}

/** What a control says, within its limits, whatever was typed. */
function number(name) {
  const { min, max, value } = control[name];
  return Math.min(Number(max), Math.max(Number(min), Number(value) || 0));
}
const settings = () => ({ temperature: number("temperature"), topK: number("topK"), topP: number("topP") });

/** The call that writes the same text with the library. */
function showCall() {
  const { temperature, topK, topP } = settings();
  const cuts = [`temperature=${temperature}`, ...(topK ? [`top_k=${topK}`] : []), ...(topP < 1 ? [`top_p=${topP}`] : [])].join(", ");
  // as Python writes them: characters that nobody sees, of which some turn the direction of what follows
  const prompt = JSON.stringify(by("prompt").value).replace(/\p{Cf}/gu, (letter) => `\\U${letter.codePointAt(0).toString(16).padStart(8, "0")}`);
  by("call").textContent = `model = nano.load(dtype="int8")\nnano.generate(\n    model, ${prompt}, max_new_tokens=${Math.floor(number("most"))},\n    sampling=nano.Sampling(${cuts}), seed=${Math.floor(number("seed"))}\n)`;
}

// What is shown
const tokenName = (id) => visible(new TextDecoder().decode(tokenizer.bytes[id]) || tokenizer.pieces[id]);

/** Show how token t was chosen, everywhere. */
function pick(t) {
  picked = Math.max(1, Math.min(t, live.ids.length));
  typed.pick(picked);
  showChoices();
  for (const view of views ?? []) view.show(picked);
}

/** What could stand at the picked place: the model's own chances, and what the settings make of them. */
function showChoices() {
  if (!live.ids.length) return;
  const logits = live.logits(picked), own = softmax(logits), shaped = shape(logits, settings());
  const now = live.ids[picked], token = live.token(picked), ids = largest(own, SHOWN);
  if (now !== undefined && !ids.includes(now)) ids[SHOWN - 1] = now;
  by("picked").replaceChildren(...(now === undefined ? ["What comes next?"] : [
    element("b", { textContent: word(token.text || token.name) }), ` was ${token.given ? "given" : "written"}; the model gave it ${percent(token.chance)}.`,
  ]));
  by("choices").replaceChildren(...choices({ ids, own, shaped, now, name: tokenName, onpick: picked < positions ? instead : null }));
  const left = shaped.reduce((sum, chance) => sum + (chance > 0), 0);
  by("left").textContent = `Your settings leave ${count(left)} of ${count(own.length)} tokens. Press one: it is written here, and the story goes on from it.`;
}

/** The views of what is inside, made for the text as it is. */
function showViews() {
  const story = live.story();
  const said = lens(story, { onpick: pick });
  const looked = heads(story, { onpick: pick, rows: story.rows, begin: chosen });
  views = [said, looked];
  by("lens").replaceChildren(said.node);
  by("heads").replaceChildren(looked.node);
  pick(picked);
}

function announce(words, wrong = false) {
  by("state").textContent = words;
  by("state").classList.toggle("wrong", wrong);
}

// Reading and writing
const pause = () => new Promise((resolve) => setTimeout(resolve));

/** The ids of a text, or null where the model has no positions for so many, and a sentence that says so. */
function idsOf(text) {
  const least = Math.ceil(text.length / longest); // so many tokens at the least: a book is not cut into pieces in vain
  const ids = least < positions ? [bos, ...tokenizer.encode(text)] : null;
  if (ids && ids.length < positions) return { ids, says: `${count(ids.length)} of ${positions} tokens` };
  const found = ids ? count(ids.length) : `${count(least)} or more`, shorter = ids ? ` by ${count(ids.length - positions + 1)} or more` : "";
  return { ids: null, says: `This text has ${found} tokens, and the model ${positions} positions: what stands further back it has never seen. Shorten it${shorter}.` };
}

/** Do this and nothing else; whatever was done before ends, and as far as it came is the text. work is asked to look, after each pause, whether it still goes on. */
async function alone(work) {
  const own = ++job;
  chosen = views?.[1].chosen() ?? chosen;
  if (!views) showText();
  views = null;
  by("write").textContent = "Stop";
  by("views").classList.add("busy");
  delete document.body.dataset.ended;
  await work(() => own === job);
  if (own !== job) return;
  by("write").textContent = "Write";
  by("views").classList.remove("busy");
  const full = live.ids.length >= positions || live.ids.at(-1) === eos;
  for (const [id, off] of [["write", false], ["other", false], ["one", full], ["more", full]]) by(id).disabled = off;
  showLess();
  showViews();
  document.body.dataset.ended = own;
}

/** Read these ids; what they have in common with the text before is read already. False where it was stopped. */
async function readAll(ids, going) {
  let same = 0;
  while (same < ids.length && live.ids[same] === ids[same]) same++;
  live.keep(same);
  live.given = ids.length;
  asked = ids;
  picked = Math.max(1, Math.min(picked, same));
  let since = performance.now();
  for (const id of ids.slice(same)) {
    live.take(id);
    if (performance.now() - since < SLICE) continue;
    announce(`Reading: ${live.ids.length} of ${ids.length} tokens`);
    await pause();
    if (!going()) return false;
    since = performance.now();
  }
  return true;
}

/** Write so many tokens, or as many as there is room for before the story ends. */
async function writeOn(most, going) {
  let spent = 0, written = 0;
  while (written < most && live.ids.length < positions && live.ids.at(-1) !== eos) {
    const begun = performance.now(), at = live.ids.length;
    live.take(draw(shape(live.logits(at), settings()), uniform(number("seed"), at)));
    spent += performance.now() - begun;
    written += 1;
    picked = at + 1;
    typed.set(at, live.token(at));
    typed.add(live.token(at + 1));
    typed.node.scrollTop = typed.node.scrollHeight;
    showChoices();
    if (live.off.size) showLess();
    announce(`${at + 1} of ${positions} tokens`);
    await pause();
    if (!going()) return;
  }
  const why = live.ids.at(-1) === eos ? "The story ends here: the model wrote </s>. " : live.ids.length >= positions ? "The text fills all positions that the model has: what would stand behind them it has never seen. " : "";
  announce(`${why}${live.ids.length} of ${positions} tokens${written ? `, written at ${Math.round((1000 * written) / spent)} a second by your machine` : ""}.`);
}

/** The text as it is, a chip for each token and one for what comes next. */
function showText() {
  typed.show(Array.from({ length: live.ids.length + 1 }, (_, t) => live.token(t)));
}

/** Show a text that was read, and write on. */
function begin(going) {
  picked = live.ids.length;
  showText();
  return writeOn(number("most"), going);
}

const write = () => alone(async (going) => {
  const { ids, says } = idsOf(by("prompt").value);
  if (!ids) announce(says, true);
  else if (await readAll(ids, going)) await begin(going);
});

/** Another token in the picked place, and on from there. */
const instead = (id) => alone(async (going) => {
  live.keep(picked);
  live.given = Math.min(live.given, picked);
  live.take(id);
  await begin(going);
});

// What is switched off
/** The story as it is with all of the model, and beside it as it is without what is off. */
function showLess() {
  const off = [...live.off].map(partName);
  by("missing").textContent = off.length ? `Without ${off.join(", ")}` : "";
  by(off.length ? "less" : "whole").textContent = typed.node.textContent;
  if (!off.length) by("less").textContent = "";
}

/** The story once more from what was given, after something was switched on or off. */
const writeAgain = () => alone(async (going) => {
  live.keep(0); // what was read was read with other parts
  if (await readAll(asked.slice(0, live.given), going)) await begin(going);
});

// The page
by("ask").onsubmit = (event) => {
  event.preventDefault();
  if (by("write").textContent === "Stop") alone(async () => announce("Stopped."));
  else write();
};
by("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  write();
};
by("prompt").oninput = () => {
  const { ids, says } = idsOf(by("prompt").value);
  by("count").textContent = says;
  by("count").classList.toggle("wrong", !ids);
  showCall();
};
by("one").onclick = () => alone((going) => writeOn(1, going));
by("more").onclick = () => alone((going) => writeOn(number("most"), going));
by("other").onclick = () => {
  control.seed.value = number("seed") + 1;
  showCall();
  write();
};
for (const beginning of EXAMPLES) {
  const onclick = () => {
    by("prompt").value = beginning;
    by("prompt").oninput();
    write();
  };
  by("examples").append(element("button", { type: "button", textContent: beginning, onclick }));
}
document.body.onkeydown = (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.target !== document.body || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  pick(picked + step);
};

const { cost, parameters } = told;
by("about").textContent = `The ${count(parameters)} numbers of the bundled model are in this file, and a few hundred lines of JavaScript run them: nothing that you type leaves this page. It has read stories for children and knows nothing else.`;
by("facts").append(...[
  [size(cost.bytes), `of numbers, instead of ${size(cost.bytes_before)} in 32 bits`],
  [`${(100 * cost.same).toFixed(1)}%`, "of the places have the same likeliest token"],
  [cost.perplexity.toFixed(4), `perplexity, instead of ${cost.before.toFixed(4)}`],
].map(([figure, words]) => element("div", {}, element("dt", { textContent: figure }), element("dd", { textContent: words }))));
by("cost").textContent = `Each number of a matrix is one of 255, times a number that its whole row shares. What that changes was measured when this page was built, at the ${count(cost.places)} places of ${cost.texts} stories that the model had written with all its bits.`;
by("prompt").oninput();
by("board").append(board({ layers: told.config.L, heads: told.config.N, off: live.off, onchange: writeAgain }));
write();

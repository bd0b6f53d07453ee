// The page of a live model: a prompt is written, plain and beside it with what was changed, and the views show it from inside.

import { cacheView } from "./cache.js";
import { changes } from "./changes.js";
import { engineView } from "./engine.js";
import { Refused, ask, keep, run, values } from "./feed.js";
import { heads } from "./heads.js";
import { lens } from "./lens.js";
import { element, size } from "./make.js";
import { shares } from "./shares.js";
import { decode } from "./story.js";
import { forked, texts } from "./texts.js";
import { treeView } from "./tree.js";

const at = (id) => document.getElementById(id);
const NUMBERS = ["max_tokens", "temperature", "seed"];
const PARTS = { text: ["surprise", "lens."], lens: ["surprise", "lens."], looked: ["surprise", "heads.", "rows"], wrote: ["surprise", "shares."] };

let about = null;
let now = null; // what is shown: {id, asked, begin, rows: [{tokens, head, specs, arrays}], cache, steps, picked: {row, t}, ended}
let running = null; // the AbortController of its stream, which is open for as long as its numbers are wanted

const written = texts({ onpick: (row, t) => pick(row, t) });
at("texts").append(written.node);
const changing = changes({ onchange: () => write(), ask });
const growing = treeView({ ask, ongo: (text) => { at("prompt").value = text; write(); } });
const caching = cacheView();
const engine = engineView({ ask });

const VIEWS = {
  lens: ["Layers", "What the model would have said had it stopped after each layer. Read a column from the bottom up.", () => part("lens", (story) => lens(story, { onpick }))],
  looked: ["Attention", "Every head reads from some tokens before. Pick a head, and the text shows what it read.", () => part("looked", (story) => heads(story, { onpick, rows: rowsOf(now, now.picked.row, before()) }))],
  wrote: ["Who wrote it", "A token's score is a sum: what each head and MLP wrote toward it, and away from the best other one.", () => part("wrote", (story) => (story.shares(1) ? shares(story) : null))],
  change: ["Change it", "Switch heads off, add a direction, put in what another text has there. The text is written again beside the plain one, with the same seed.", () => changing],
  tree: ["What else", "What could have been said from here on, and how likely. Pick an end, and the text goes on from there.", () => growing],
  cache: ["Cache", "Which token stands in which slot of each layer: keys and values that the next token is compared with.", () => caching],
  engine: ["Engine", "What the engine did, step by step: a lane for each row, with prompts read in pieces and tokens written in chunks.", () => engine],
};
let chosen = "lens";

// A story is of the last tokens of a long text: so many are before its first one.
const before = () => now.rows[now.picked.row].tokens.length - (now.rows[now.picked.row].head?.tokens.length ?? 0);
const onpick = (t) => pick(now.picked.row, t + before());
let shown = null;

/** A view of the finished story of the row that is picked; its arrays travel when it is first looked at. */
async function part(name, make) {
  const { row } = now.picked, kept = now, one = now.rows[row];
  if (!one?.head) return null;
  one.made ??= {};
  if (one.made[name]?.head === one.head) return one.made[name].part;
  const head = one.head;
  const story = await fetched(kept, row, PARTS[name]);
  const made = story && now === kept ? make(story) : null;
  if (made) one.made[name] = { head, part: made };
  return made;
}

/** The story of a row, with the arrays whose names begin so. */
async function fetched(kept, row, prefixes) {
  const one = kept.rows[row], { head, specs } = one;
  if (one.arraysOf !== head) Object.assign(one, { arraysOf: head, arrays: {} });
  const missing = Object.keys(specs).filter((name) => prefixes.some((prefix) => name.startsWith(prefix)) && !one.arrays[name]);
  const found = await Promise.all(missing.map((name) => values(kept.id, { name, row })));
  if (one.head !== head || found.some(({ story }) => story !== one.number)) return null; // it has gone on meanwhile
  missing.forEach((name, n) => (one.arrays[name] = found[n]));
  return decode({ head, arrays: one.arrays });
}

/** Whole rows of attention, of a layer that somebody looks at; null where only the strongest places were kept. */
function rowsOf({ id }, row, first) {
  return async (layer) => {
    try {
      const { data, shape } = await values(id, { name: `layers.${layer}.attention.weights`, row });
      const all = new Float32Array(data), [, K, G, S] = shape;
      const begin = (head, t) => ((first + t - 1) * K * G + head) * S;
      return (head, t) => all.subarray(begin(head, t) + first, begin(head, t) + S);
    } catch {
      return null;
    }
  };
}

async function show() {
  const [, lead, make] = VIEWS[chosen];
  const view = at("view");
  for (const tab of at("tabs").children) {
    tab.setAttribute("aria-selected", String(tab.dataset.view === chosen));
    tab.tabIndex = tab.dataset.view === chosen ? 0 : -1;
  }
  let found = null;
  try {
    found = now && (await make());
  } catch (error) {
    say(error);
  }
  shown = found;
  const nothing = element("p", { className: "lead", textContent: now ? "It is shown when the first tokens are there." : "" });
  const rows = now?.rows.length > 1 && PARTS[chosen] ? [switcher()] : [];
  view.replaceChildren(element("div", { className: "head" }, element("p", { className: "lead", textContent: lead }), ...rows), found?.node ?? nothing);
  tellShown();
}

function tellShown() {
  if (!shown || !now) return;
  if (PARTS[chosen]) shown.show(Math.max(0, now.picked.t - before()));
  else shown.show(now, now.picked, about);
}

function switcher() {
  const one = (row) => {
    const made = element("button", { type: "button", textContent: ["Plain", "Changed"][row], onclick: () => pick(row, Math.min(now.picked.t, now.rows[row].tokens.length - 1)) });
    made.setAttribute("aria-pressed", String(now.picked.row === row));
    return made;
  };
  return element("div", { className: "switch", role: "group", ariaLabel: "Which text the views show" }, one(0), one(1));
}

function pick(row, t) {
  const other = now.picked.row !== row;
  now.picked = { row, t, chosen: true };
  written.pick(now.rows, row, t);
  if (other && PARTS[chosen]) show();
  else tellShown();
}

function say(error) {
  if (error.name === "AbortError") return;
  at("state").className = "wrong";
  at("state").textContent = error instanceof Refused ? error.message : `the page failed: ${error.message}`;
  if (error.status === 401) at("keyed").hidden = false;
  if (!(error instanceof Refused)) throw error;
}

function note(text) {
  at("state").className = "";
  at("state").textContent = text;
}

function wanted() {
  const { value } = at("prompt");
  const made = { prompt: about.texts ? value : value.trim().split(/\s+/).map(Number) }; // without a tokenizer a text is ids
  for (const name of NUMBERS) if (at(name).value !== "") made[name] = Number(at(name).value);
  if (at("speculate").checked) made.speculate = "lookup:4";
  const edits = changing.edits();
  if (edits) made.edits = edits;
  return made;
}

async function write(example = false) {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const asked = example ? null : wanted();
  const mine = { id: "", asked, rows: [], cache: null, steps: [], picked: { row: 0, t: 0 }, ended: false };
  note(example ? "An example is being written; the first time its programs are compiled, which takes half a minute." : "Waiting for its turn ...");
  try {
    for await (const { word, data } of run(asked, signal)) {
      if (signal.aborted) return;
      await HEARD[word]?.(mine, data);
    }
    if (asked && !signal.aborted) note("The server has let go of this run; write it again to look further.");
  } catch (error) {
    if (!signal.aborted) say(error);
  }
}

const HEARD = {
  run: (mine, { id }) => (mine.id = id),
  begin(mine, data) {
    const before = now;
    now = mine;
    mine.begin = data;
    mine.rows = data.rows.map(() => ({
      tokens: data.tokens.map((text, t) => ({ text, name: data.names[t], id: data.ids[t], surprise: NaN, given: true, tops: null })), head: null,
    }));
    if (!mine.asked) at("prompt").value = data.tokens.join("").replace(/^ /, "");
    mine.picked = { row: Math.min(before?.picked.row ?? 0, data.rows.length - 1), t: data.tokens.length - 1 };
    changing.fit(data, about);
    if (!mine.asked) changing.take(data.edits);
    written.begin(mine.rows, data.edits);
    show();
    note("Writing ...");
  },
  token(mine, { row, tokens }) {
    for (const one of tokens) mine.rows[row].tokens.push({ ...one, surprise: -Math.log(one.chance), given: false });
    written.grow(mine.rows, row);
  },
  event(mine, data) {
    mine.steps.push(data);
    if (chosen === "engine") tellShown();
  },
  cache(mine, data) {
    mine.cache = data;
    if (chosen === "cache") tellShown();
  },
  async summary(mine, { row, number, head, arrays }) {
    Object.assign(mine.rows[row], { number, head, specs: arrays });
    if (!mine.picked.chosen) mine.picked.t = head.tokens.length - 1;
    if (row === mine.picked.row && PARTS[chosen]) await show();
  },
  async end(mine, data) {
    mine.ended = true;
    for (const [row, one] of mine.rows.entries()) {
      const story = await fetched(mine, row, PARTS.text);
      if (!story) continue;
      const first = one.tokens.length - story.size; // what is before it is known from when it was drawn
      for (let t = 0; t < story.size; t++) {
        const token = one.tokens[first + t], tops = story.alternatives(t)?.best.map(({ word, chance, id }) => [word, chance, id]);
        Object.assign(token, { text: story.head.tokens[t], name: story.head.names[t], tops: tops ?? token.tops });
        if (tops) token.surprise = story.token(t).surprise;
      }
    }
    if (now !== mine) return;
    if (!mine.picked.chosen) mine.picked = worthALook(mine);
    written.begin(mine.rows, mine.begin.edits);
    written.pick(mine.rows, mine.picked.row, mine.picked.t);
    const count = mine.rows[0].tokens.filter(({ given }) => !given).length;
    const seconds = mine.steps.at(-1).to - mine.steps[0].from, rest = data.seconds - seconds;
    note(`${count} tokens in ${seconds.toFixed(1)} s, ${rest.toFixed(1)} s to make programs ready and to read off the inside; seed ${mine.begin.seed}; ${size(data.bytes)} kept, until this page is left.`);
    await show();
    document.body.dataset.ended = mine.id;
  },
  error(mine, { message }) {
    throw new Refused(message, 0);
  },
};

/** Where the changed text leaves the plain one, or the most surprising token that was written. */
function worthALook({ rows, picked: { row } }) {
  const fork = forked(rows), { tokens } = rows[row];
  if (fork >= 0) return { row: 1, t: fork };
  let found = tokens.findIndex(({ given }) => !given);
  tokens.forEach(({ given, surprise }, t) => (found = !given && surprise > tokens[found].surprise ? t : found));
  return { row, t: Math.max(found, 0) };
}

at("ask").onsubmit = (event) => {
  event.preventDefault();
  if (at("key").value) keep(at("key").value);
  if (about) write();
  else begin();
};
at("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("ask").requestSubmit();
};
for (const [view, [label]] of Object.entries(VIEWS)) {
  const tab = element("button", { type: "button", role: "tab", textContent: label, onclick: () => choose(view) });
  tab.dataset.view = view;
  at("tabs").append(tab);
}
function choose(view) {
  chosen = view;
  show();
}
at("tabs").onkeydown = (event) => {
  const tabs = [...at("tabs").children], n = tabs.indexOf(document.activeElement);
  const to = { ArrowLeft: n - 1, ArrowRight: n + 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (to === undefined || n < 0) return;
  event.preventDefault();
  event.stopPropagation();
  const tab = tabs[(to + tabs.length) % tabs.length];
  tab.focus();
  choose(tab.dataset.view);
};
document.onkeydown = (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by || !now || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  const { row, t } = now.picked;
  if (t + by < 0 || t + by >= now.rows[row].tokens.length) return;
  event.preventDefault();
  pick(row, t + by);
};

async function begin() {
  try {
    about = await ask("about");
  } catch (error) {
    return say(error);
  }
  at("keyed").hidden = true;
  document.title = `${about.name}, from inside`;
  at("about").textContent = `${about.name}: ${about.layers} layers of ${about.heads} heads, ${about.parameters.toLocaleString("en")} parameters. Every number is of the generation itself.`;
  at("max_tokens").max = about.context - 1;
  at("chat").hidden = !about.engine; // where one serves, the page that chats stands beside this one
  await write(true);
}
await begin();

// A text that the model in this page has read, and all that it computed on the way.
//   const live = liveText(model, tokenizer)
//   live.keep(n)        forget all but the first n tokens
//   live.take(id)       read one more
//   live.off            a Set of what adds nothing, as forward takes it; whoever changes it has to read the text again
//   live.given          how many tokens were given; the others were written
//   live.logits(t)      [V]: the scores from which token t was chosen, or will be
//   live.story()        what the parts of nanollm_jax/glass/page show, of the text as it is now
// The story has one token more than the text: the one that comes next, which has no name yet.

import { emptyCache, forget, forward, say } from "./model.js";
import { largest } from "./sampler.js";
import { softmax } from "./ops.js";

const BEST_OF_ALL = 5; // words of a cell of the lens

export function liveText(model, tokenizer) {
  const { config } = model, cache = emptyCache(config);
  const ids = [], passes = [], texts = [];
  let decode = tokenizer.decoder();
  const live = { ids, given: 0, off: new Set(), keep, take, logits: (t) => passes[t - 1].logits, token, story };

  function keep(length) {
    ids.length = passes.length = texts.length = length;
    forget(cache, length);
    decode = tokenizer.decoder();
    for (const id of ids) decode(id);
  }

  function take(id) {
    ids.push(id);
    texts.push(decode(id));
    passes.push(forward(model, id, cache, live.off));
  }

  function token(t) {
    if (t === ids.length) return { text: "", name: "?", surprise: NaN, chance: NaN, given: false };
    const name = texts[t] ? "" : tokenizer.pieces[ids[t]], chance = t ? softmax(live.logits(t))[ids[t]] : NaN;
    return { text: texts[t], name, surprise: -Math.log(chance), chance, given: t < live.given };
  }

  /** The words that lead when the stream at a depth goes through the last norm and the table, and the chance of what followed. */
  function saidAt(depth, t) {
    const pass = passes[t - 1];
    pass.said ??= [];
    return (pass.said[depth] ??= (() => {
      const chances = softmax(depth === config.L ? pass.logits : say(model.params, pass.stream[depth], config));
      const word = (id) => new TextDecoder().decode(tokenizer.bytes[id]) || tokenizer.pieces[id];
      return { best: largest(chances, BEST_OF_ALL).map((id) => ({ word: word(id), id, chance: chances[id] })), chances };
    })());
  }

  function story() {
    const all = Array.from({ length: ids.length + 1 }, (_, t) => token(t));
    const layers = Array.from({ length: config.L }, (_, layer) => layer);
    const looked = (layer, head, t) => Array.from(passes[t - 1].looked[layer][head], (weight, place) => ({ place, weight })).sort((a, b) => b.weight - a.weight);
    return {
      head: { depths: ["embedding", ...layers.slice(0, -1).map((layer) => `layers.${layer}.out`), "final_norm"], tokens: all.map(({ text }) => text), names: all.map(({ name }) => name) },
      size: all.length, token: (t) => all[t], layers, heads: config.N, looked,
      said: (depth, t) => ({ best: saidAt(depth, t).best, next: t < ids.length ? saidAt(depth, t).chances[ids[t]] : NaN }),
      rows: async (layer) => (head, t) => passes[t - 1].looked[layer][head],
    };
  }
  return live;
}

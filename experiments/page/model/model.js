// The transformer: one token and a cache in, logits and a longer cache out. What nanollm_jax/model.py does, for the bundled
// model's kind (LLaMA: RMS norms, rotary positions, grouped queries, a gated MLP, one table for both ends).
//
//   const model = unpack(head, bytes)          of what experiments/playground.py packed
//   const cache = emptyCache(model.config)
//   const { logits, stream, looked } = forward(model, token, cache)
//
// logits [V] score the token that follows. stream is the residual stream at each depth, the embedding first, L + 1 of [D];
// looked[layer][head] is what the head took from each token so far [S].

import { add, linear, lookUp, mix, rmsNorm, rotate, silu, turns, weights } from "./ops.js";

/** The parameters by their paths, as in the library: params.layers[3].attention.wo. Nothing is copied. */
export function unpack({ config, tensors }, bytes) {
  const params = { layers: [] };
  for (const [path, { values, scale, size, rows }] of Object.entries(tensors)) {
    const names = path.split("."), last = names.pop();
    const room = names.reduce((branch, name) => (branch[name] ??= {}), params);
    const scales = new Float32Array(bytes, scale, rows);
    room[last] = size ? { values: new Int8Array(bytes, values, size), scale: scales } : scales; // a norm has nothing but a scale
  }
  return { config, params };
}

/** Keys and values of the tokens that were seen: for each layer and key/value head a list, one [H] for each token (chapter 20). */
export function emptyCache({ L, K }) {
  const lists = () => Array.from({ length: K }, () => []);
  return { length: 0, layers: Array.from({ length: L }, () => ({ keys: lists(), values: lists() })) };
}

/** Forget all but the first `length` tokens: what was read stays read. */
export function forget(cache, length) {
  cache.length = length;
  for (const { keys, values } of cache.layers) for (const list of [...keys, ...values]) list.length = length;
}

/** Read one more token, which stands at position cache.length. off: what adds nothing, "3 1" for head 1 of layer 3, "3 mlp" for its MLP (chapter 23). */
export function forward({ params, config }, token, cache, off = new Set()) {
  const table = params.embedding.tokens;
  const turn = turns(cache.length, config.H, config.theta);
  let x = lookUp(table, token, config.D);
  const stream = [x], looked = [];
  params.layers.forEach((p, index) => {
    const found = block(p, x, turn, cache.layers[index], config, (part) => off.has(`${index} ${part}`));
    x = found.x;
    stream.push(x);
    looked.push(found.looked);
  });
  cache.length += 1;
  return { logits: say(params, x, config), stream, looked };
}

/** From the residual stream, at any depth, to a score for every token: the last norm, then the table of tokens once more.  [D] -> [V] */
export function say(params, x, config) {
  return linear(params.embedding.tokens, rmsNorm(x, params.final_norm.scale, config.eps));
}

/** One layer: attention, then the MLP, each added to the residual stream (chapter 14).  x [D] -> [D] */
function block(p, x, turn, seen, config, silent) {
  const { mixed, looked } = attend(p.attention, rmsNorm(x, p.attention_norm.scale, config.eps), turn, seen, config, silent);
  const middle = add(x, linear(p.attention.wo, mixed));
  if (silent("mlp")) return { x: middle, looked };
  const given = feedForward(p.mlp, rmsNorm(middle, p.mlp_norm.scale, config.eps), config);
  return { x: add(middle, given), looked };
}

/** What each head reads from the tokens so far, this one included (chapter 11).  h [D] -> [N H]
 *
 * wqkv holds, for each key/value head, its G query heads, its key and its value. */
function attend(p, h, turn, seen, { N, K, H }, silent) {
  const G = N / K, qkv = linear(p.wqkv, h);
  const mixed = new Float32Array(N * H), looked = [];
  for (let k = 0; k < K; k++) {
    const part = (n) => qkv.subarray((k * (G + 2) + n) * H, (k * (G + 2) + n + 1) * H);
    rotate(part(G), turn);
    seen.keys[k].push(part(G));
    seen.values[k].push(part(G + 1));
    for (let g = 0; g < G; g++) {
      rotate(part(g), turn);
      const shares = weights(part(g), seen.keys[k]);
      looked.push(shares);
      if (!silent(k * G + g)) mixed.set(mix(shares, seen.values[k]), (k * G + g) * H);
    }
  }
  return { mixed, looked };
}

/** The MLP: widen the vector, bend it by a gate, narrow it again (chapter 13).  h [D] -> [D] */
function feedForward(p, h, { F }) {
  const wide = linear(p.up, h); // the gate's F numbers, then as many that it lets through
  const hidden = new Float32Array(F);
  for (let f = 0; f < F; f++) hidden[f] = silu(wide[f]) * wide[F + f];
  return linear(p.down, hidden);
}

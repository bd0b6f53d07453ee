// From logits to the next token, in the steps and the order of nanollm_jax/sampling.py: temperature, top-k, top-p, min-p, one
// draw (chapter 18).
//   const chances = shape(logits, { temperature, topK, topP, minP })     [V], 0 for what was cut; temperature 0 leaves the best alone
//   const token = draw(chances, uniform(seed, position))

import { softmax } from "./ops.js";

/** The id of the largest number, the first of several. */
export const best = (numbers) => numbers.reduce((at, value, id) => (value > numbers[at] ? id : at), 0);

/** The ids of the `count` largest numbers, the largest first. */
export function largest(numbers, count) {
  return Array.from(numbers.keys()).sort((a, b) => numbers[b] - numbers[a]).slice(0, count);
}

/** What the next token is drawn from.  logits [V] -> [V], which sum to 1 */
export function shape(logits, { temperature = 1, topK = 0, topP = 1, minP = 0 } = {}) {
  if (temperature === 0) {
    const id = best(logits);
    return logits.map((_, other) => (other === id ? 1 : 0));
  }
  const most = logits[best(logits)];
  let scores = logits.map((logit) => (logit - most) / temperature);
  if (topK > 0) scores = keepBest(scores, scores.map(() => 1), topK);
  if (topP < 1) scores = keepBest(scores, softmax(scores), topP);
  scores = scores.map((score) => (score >= Math.log(minP) ? score : -Infinity)); // the best is 0, so this is a share of its chance
  return softmax(scores);
}

/** What has less than `limit` of weight before it, from the best down, stays; the rest becomes -Infinity. Who ties with the last one stays too. */
function keepBest(scores, weight, limit) {
  let before = 0, lowest = -Infinity;
  for (const id of largest(scores, scores.length)) {
    if (before >= limit) break;
    lowest = scores[id];
    before += weight[id];
  }
  return scores.map((score) => (score >= lowest ? score : -Infinity));
}

/** The id in whose share of the line from 0 to 1 the number falls.  chances [V], number from 0 to 1 */
export function draw(chances, number) {
  let sum = 0, last = 0;
  for (let id = 0; id < chances.length; id++) {
    if (chances[id] === 0) continue;
    sum += chances[id];
    last = id;
    if (sum > number) break;
  }
  return last; // never one that was cut, whatever rounding does to the sum
}

/** A number from 0 to 1 that depends on the seed and the position alone: the one that JAX draws there, so that a seed writes the same text in both. */
export function uniform(seed, position) {
  const key = threefry(threefry([0, seed], [0, position]), [0, 0]);
  return ((key[0] ^ key[1]) >>> 9) / 2 ** 23; // 23 bits, as many as the fraction of a float32 has
}

/** Two words, scrambled by a key of two words, in 20 rounds: Threefry-2x32.  Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" */
function threefry([k0, k1], [x0, x1]) {
  const keys = [k0, k1, k0 ^ k1 ^ 0x1bd11bda], turnsBy = [[13, 15, 26, 6], [17, 29, 16, 24]];
  x0 = (x0 + k0) | 0;
  x1 = (x1 + k1) | 0;
  for (let round = 1; round <= 5; round++) {
    for (const bits of turnsBy[(round + 1) % 2]) {
      x0 = (x0 + x1) | 0;
      x1 = x0 ^ ((x1 << bits) | (x1 >>> (32 - bits)));
    }
    x0 = (x0 + keys[round % 3]) | 0;
    x1 = (x1 + keys[(round + 1) % 3] + round) | 0;
  }
  return [x0, x1];
}

// The operations of the transformer, one function each, in the order of nanollm_jax/ops. Letters are those of the library:
// D model width, V vocabulary, O outputs, I inputs, N query heads, K key/value heads, G = N / K, H head width, F MLP width, S slots.
//
// All work on one token: a vector is a Float32Array, so what is stored is rounded to float32 as in the library. Sums run in
// JavaScript's own numbers, float64. A weight is { values, scale }: whole numbers from -127 to 127, [O I] one row after the
// other, and what each row is to be multiplied by, [O] (nanollm_jax/ops/int8.py; chapter 24).

/** Row `id` of a table: the vector of one token.  table [V D] -> [D] */
export function lookUp(table, id, D) {
  const x = new Float32Array(D);
  for (let d = 0; d < D; d++) x[d] = table.values[id * D + d] * table.scale[id];
  return x;
}

/** Every row of the weight times x: the numbers that the model has learned are nearly all used here.  weight [O I], x [I] -> [O] */
export function linear(weight, x) {
  const { values, scale } = weight, I = x.length, O = scale.length;
  const y = new Float32Array(O);
  for (let o = 0, at = 0; o < O; o++, at += I) {
    let sum = 0;
    for (let i = 0; i < I; i++) sum += values[at + i] * x[i];
    y[o] = sum * scale[o]; // once for the row, behind its sum: that is what keeps 8 bits cheap
  }
  return y;
}

/** x divided by its root mean square, then stretched.  x [D], scale [D] -> [D] (chapter 08) */
export function rmsNorm(x, scale, eps) {
  let squares = 0;
  for (const value of x) squares += value * value;
  const size = Math.sqrt(squares / x.length + eps);
  return x.map((value, d) => (value / size) * scale[d]);
}

/** The cosine and sine of each pair's angle at a position.  -> two [H/2] (chapter 12)
 *
 * Rounded to float32 at every step, as the library does: at far positions the last bit of a frequency is visible. */
export function turns(position, H, theta) {
  const round = Math.fround, cos = new Float32Array(H / 2), sin = new Float32Array(H / 2);
  for (let i = 0; i < H / 2; i++) {
    const frequency = round(1 / round(theta ** round((2 * i) / H)));
    const angle = round(position * frequency);
    cos[i] = Math.cos(angle);
    sin[i] = Math.sin(angle);
  }
  return { cos, sin };
}

/** Turn the pairs (i, i + H/2) of a head by their angles, in place.  head [H] */
export function rotate(head, { cos, sin }) {
  const half = cos.length;
  for (let i = 0; i < half; i++) {
    const left = head[i], right = head[i + half];
    head[i] = left * cos[i] - right * sin[i];
    head[i + half] = right * cos[i] + left * sin[i];
  }
}

/** Numbers to shares of 1, the larger the number the larger the share.  [S] -> [S] (chapter 09) */
export function softmax(scores) {
  let most = -Infinity, total = 0;
  for (const score of scores) most = Math.max(most, score); // taken off, so that nothing overflows
  const shares = scores.map((score) => Math.exp(score - most));
  for (const share of shares) total += share;
  return shares.map((share) => share / total);
}

/** How much one query takes from each key: the better they match, the more.  query [H], keys [S] of [H] -> [S] (chapter 10) */
export function weights(query, keys) {
  const H = query.length, scores = new Float32Array(keys.length);
  keys.forEach((key, s) => {
    let product = 0;
    for (let h = 0; h < H; h++) product += query[h] * key[h];
    scores[s] = product / Math.sqrt(H);
  });
  return softmax(scores);
}

/** The mean of the values, by these weights.  shares [S], values [S] of [H] -> [H] */
export function mix(shares, values) {
  const mean = new Float32Array(values[0].length);
  values.forEach((value, s) => {
    for (let h = 0; h < mean.length; h++) mean[h] += shares[s] * value[h];
  });
  return mean;
}

/** x times its sigmoid: nearly 0 far below zero, nearly x far above (chapter 07) */
export const silu = (x) => x / (1 + Math.exp(-x));

/** Two vectors, added.  [D], [D] -> [D] */
export const add = (x, y) => x.map((value, d) => value + y[d]);

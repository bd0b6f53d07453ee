// The data of glass/story.py, decoded.
//   const story = decode(JSON.parse(text))
//   story.head              texts, names, settings, notes, as story.py writes them
//   story.size              how many tokens; token t was chosen at place t - 1
//   story.token(t)          { text, name, surprise (nats, NaN of the first), chance, given }
//   story.said(depth, t)    { best: [{ word, id, chance }], next }: what the model would have said in place of token t at a depth
//   story.alternatives(t)   the same at the last depth, which is what it said; null of the first token
//   story.layers            which layers the heads are of; story.heads how many each has
//   story.looked(l, n, t)   [{ place, weight }]: where head n of the l-th of them looked when token t was chosen
//   story.row(n, t)         all weights of head n of layer head.rows, where they are kept; else null
//   story.shares(t)         { heads [L][N], mlps [L], embedding, bias, rest, against }, or null
//   story.array(name)       { data, shape, letters } as it was sent
// Data is base64 in a report; a page fetches bytes, and of the arrays those alone that it shows.

const KINDS = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float16: Uint16Array, float32: Float32Array };
const AWAY = 65535; // a place that is not shown

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}

function unpacked({ data, dtype, shape, letters }) {
  const bytes = typeof data === "string" ? Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)) : new Uint8Array(data);
  const found = new KINDS[dtype](bytes.buffer);
  return { data: dtype === "float16" ? Float32Array.from(found, half) : found, shape, letters: letters.split(" ") };
}

export function decode({ head, arrays }) {
  const found = Object.fromEntries(Object.entries(arrays).map(([name, array]) => [name, unpacked(array)]));
  const array = (name) => found[name];
  // the numbers behind a few indices: a slice of the last axis
  const part = (name, ...index) => {
    const { data, shape } = found[name];
    const size = shape.slice(index.length).reduce((a, b) => a * b, 1);
    const at = index.reduce((sum, i, axis) => sum * shape[axis] + i, 0) * size;
    return data.subarray(at, at + size);
  };
  const size = head.tokens.length;
  const surprise = found.surprise.data;
  const said = (depth, t) => {
    if (t < 1 || t >= size) return null;
    const chances = part("lens.chances", depth, t - 1);
    const words = Array.from(part("lens.words", depth, t - 1));
    return { best: words.map((n, x) => ({ word: head.words[n], id: head.word_ids[n], chance: chances[x] })), next: part("lens.next", depth, t - 1)[0] };
  };
  const looked = (layer, n, t) => {
    if (t < 1) return [];
    const weights = part("heads.weights", layer, n, t - 1);
    return Array.from(part("heads.places", layer, n, t - 1), (place, x) => ({ place, weight: weights[x] / 255 })).filter(({ place }) => place !== AWAY);
  };
  const row = (n, t) => {
    if (!found.rows) return null;
    const kept = (Math.sqrt(8 * found.rows.shape[1] + 1) - 1) / 2; // the last places, each with those from the first of them on
    const first = size - 1 - kept, at = t - 1 - first;
    if (at < 0) return null;
    const whole = new Float32Array(size - 1);
    part("rows", n).subarray((at * (at + 1)) / 2, ((at + 1) * (at + 2)) / 2).forEach((weight, place) => (whole[first + place] = weight / 255));
    return whole;
  };
  const shares = (t) => {
    if (!found["shares.heads"] || t < 1) return null;
    const [, L, N] = found["shares.heads"].shape;
    const flat = part("shares.heads", t - 1);
    const one = (name) => part(name, t - 1)[0];
    return {
      heads: Array.from({ length: L }, (_, l) => Array.from(flat.subarray(l * N, (l + 1) * N))),
      mlps: Array.from(part("shares.mlps", t - 1)),
      embedding: one("shares.embedding"),
      bias: one("shares.bias"),
      rest: one("shares.rest"),
      against: head.words[one("shares.against")],
    };
  };
  return {
    head, size, array, said, looked, row, shares,
    token: (t) => ({ text: head.tokens[t], name: head.names[t], surprise: surprise[t], chance: Math.exp(-surprise[t]), given: t < head.given }),
    alternatives: (t) => said(head.depths.length - 1, t),
    layers: Array.from(found["heads.layers"]?.data ?? []),
    heads: found["heads.places"]?.shape[1] ?? 0,
  };
}

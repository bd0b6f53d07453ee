// Text to ids and back, as SentencePiece's byte pair encoding does it (chapter 15).
//   const tokenizer = readTokenizer({ pieces, special })   pieces in the order of their ids; special: ids that are never text
//   tokenizer.encode(text)          the ids, without a mark for the beginning
//   for (const parts of tokenizer.merges(word)) ...     the parts of one word, after each merge
//   const decode = tokenizer.decoder(); decode(id)      the characters that are complete with this id, perhaps none

const SPACE = "▁"; // how pieces write one
const BYTE = /^<0x([0-9A-F]{2})>$/; // a piece for what no other piece can write: one byte of its UTF-8

export function readTokenizer({ pieces, special }) {
  const bytes = pieces.map((piece, id) => (special.includes(id) ? new Uint8Array() : BYTE.test(piece) ? Uint8Array.of(parseInt(piece.slice(3, 5), 16)) : new TextEncoder().encode(piece.replaceAll(SPACE, " "))));
  const firstByte = pieces.indexOf("<0x00>");
  // pieces that text can become; the earlier one was learned, the more it is wanted
  const ids = new Map(pieces.map((piece, id) => [piece, id]).filter(([piece, id]) => !special.includes(id) && !BYTE.test(piece)));
  const rank = (left, right) => (left === undefined || right === undefined ? Infinity : (ids.get(left + right) ?? Infinity));

  /** Neighbours become one, those first that were learned first, as long as any are a piece; the parts so far after every merge. */
  function* merges(word) {
    const parts = Array.from(word); // of whole characters, not halves of an emoji
    const ranks = parts.map((part, at) => rank(part, parts[at + 1]));
    yield parts;
    for (;;) {
      let at = 0;
      for (let other = 1; other < ranks.length; other++) if (ranks[other] < ranks[at]) at = other;
      if (!(ranks[at] < Infinity)) return;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
      ranks.splice(at, 2, rank(parts[at], parts[at + 1]));
      if (at) ranks[at - 1] = rank(parts[at - 1], parts[at]);
      yield parts;
    }
  }

  function encode(text) {
    if (!text) return [];
    const words = (SPACE + text.replaceAll(" ", SPACE)).split(/(?<=[^▁])(?=▁)/); // no piece goes on behind the end of a word
    return words.flatMap((word) => {
      let parts = [];
      for (parts of merges(word));
      return parts.flatMap((part) => ids.get(part) ?? Array.from(new TextEncoder().encode(part), (byte) => firstByte + byte));
    });
  }

  function decoder() {
    const utf8 = new TextDecoder();
    let first = true; // the space before the first word was put there by encode
    return (id) => {
      let some = bytes[id];
      if (first && some.length) {
        first = false;
        if (some[0] === 32) some = some.subarray(1);
      }
      return utf8.decode(some, { stream: true });
    };
  }
  return { pieces, bytes, encode, merges, decoder };
}

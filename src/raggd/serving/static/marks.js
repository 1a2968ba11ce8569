// Which words of a passage are words of an answer: pure functions, no page.

const ARTICLES = new Set(["a", "an", "the"]);
const COMMON = new Set(("and are as at be but by for from had has have he her his in is it its no not of on or she " +
  "that their they this to was were which who will with yes").split(" "));

// Words with their places, compared without case and accents of width.
export function words(text) {
  return [...text.matchAll(/[\p{L}\p{N}]+/gu)].map((found) => ({
    word: found[0].normalize("NFKC").toLowerCase(), start: found.index, end: found.index + found[0].length,
  }));
}

// Places [start, end] in the passage: the answer as a run of words, else its telling words one by one.
export function places(passage, answer) {
  const wanted = words(answer).map((w) => w.word).filter((w) => !ARTICLES.has(w));
  if (!wanted.length) return [];
  const held = words(passage);
  const found = [];
  const content = held.filter((w) => !ARTICLES.has(w.word));
  for (let at = 0; at + wanted.length <= content.length; at++) {
    if (wanted.every((word, i) => content[at + i].word === word)) {
      found.push([content[at].start, content[at + wanted.length - 1].end]);
      at += wanted.length - 1;
    }
  }
  if (found.length) return found;
  const telling = new Set(wanted.filter((w) => w.length > 2 && !COMMON.has(w)));
  return held.filter((w) => telling.has(w.word)).map((w) => [w.start, w.end]);
}

// The passage as pieces {text, marked}, in order.
export function marked(passage, answer) {
  const pieces = [];
  let at = 0;
  for (const [start, end] of places(passage, answer)) {
    if (start > at) pieces.push({ text: passage.slice(at, start), marked: false });
    pieces.push({ text: passage.slice(start, end), marked: true });
    at = end;
  }
  if (at < passage.length) pieces.push({ text: passage.slice(at), marked: false });
  return pieces;
}

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

// Places [start, end] where the passage holds the answer as a run of words; articles do not count.
export function runs(passage, answer) {
  const wanted = words(answer).map((w) => w.word).filter((w) => !ARTICLES.has(w));
  const held = words(passage).filter((w) => !ARTICLES.has(w.word));
  const found = [];
  for (let at = 0; wanted.length && at + wanted.length <= held.length; at++) {
    if (wanted.every((word, i) => held[at + i].word === word)) {
      found.push([held[at].start, held[at + wanted.length - 1].end]);
      at += wanted.length - 1;
    }
  }
  return found;
}

// Places of the answer's telling words, one by one.
export function single(passage, answer) {
  const telling = new Set(words(answer).map((w) => w.word).filter((w) => w.length > 2 && !COMMON.has(w)));
  return words(passage).filter((w) => telling.has(w.word)).map((w) => [w.start, w.end]);
}

// A function from a text to its pieces {text, marked}: runs of the answer where any text holds one, else its words.
export function marker(texts, answer) {
  const places = texts.some((text) => runs(text, answer).length) ? runs : single;
  return (text) => pieces(text, places(text, answer));
}

function pieces(passage, places) {
  const found = [];
  let at = 0;
  for (const [start, end] of places) {
    if (start > at) found.push({ text: passage.slice(at, start), marked: false });
    found.push({ text: passage.slice(start, end), marked: true });
    at = end;
  }
  if (at < passage.length) found.push({ text: passage.slice(at), marked: false });
  return found;
}

// The page: ask, show examples, compare. Everything goes through the public API of this server.
import { marker } from "./marks.js";
import { READY } from "./ready.js";

const $ = (id) => document.getElementById(id);
const METHODS = ["vanilla-rag", "base", "adapted"];
const EXAMPLE = {
  question: "who painted the night watch",
  rows: [
    ["who wrote the novel frankenstein", "Mary Shelley"],
    ["what is the capital of australia", "Canberra"],
    ["when did the titanic sink", "15 April 1912"],
  ],
};
const state = { support: null, asked: "", answers: {}, passages: [], run: 0, marking: "" };

// --- the server

class Refused extends Error {}

async function call(path, { method = "GET", body } = {}) {
  const headers = {};
  const key = sessionStorage.getItem("raggd-key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Refused("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401) askForKey();
  const told = await response.json().catch(() => null);
  throw new Refused(told?.error?.message ?? `The server answered ${response.status}.`);
}

const read = async (path, options) => (await call(path, options)).json();

// Server-sent events, one parsed object at a time.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function stream(model, question, onText) {
  const body = {
    model, messages: [{ role: "user", content: question }], stream: true, stream_options: { include_usage: true },
  };
  const found = { text: "", refusal: "", passages: [], cut: 0, timings: null, tokens: 0, read: 0 };
  for await (const chunk of events(await call("/v1/chat/completions", { method: "POST", body }))) {
    if (chunk.error) throw new Refused(chunk.error.message);
    if (chunk.usage) [found.tokens, found.read] = [chunk.usage.completion_tokens, chunk.usage.prompt_tokens];
    if (chunk.raggd) {
      found.passages = chunk.raggd.passages ?? [];
      found.cut = chunk.raggd.passages_cut;
      found.timings = chunk.raggd.timings ?? found.timings;
    }
    found.refusal = chunk.choices[0]?.delta.refusal ?? found.refusal;
    const piece = chunk.choices[0]?.delta.content;
    if (piece) onText(found.text += piece);
  }
  return found;
}

function askForKey() {
  $("key-form").hidden = false;
}

function problem(id, text) {
  $(id).hidden = !text;
  $(id).textContent = text ?? "";
}

const why = (error) => (error instanceof Refused ? error.message : `The page failed: ${error}`);

// Do what may fail with the examples; why it did is said beside them.
async function tried(work) {
  problem("adapt-problem");
  await work().catch((error) => problem("adapt-problem", why(error)));
}

// An element with its properties, and what stands in it.
function make(tag, properties = {}, ...inside) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...inside);
  return node;
}

// --- asking

const card = (method) => document.querySelector(`.answer[data-method="${method}"]`);

function say(method, text, kind = "") {
  const said = card(method).querySelector(".said");
  said.className = `said ${kind}`;
  said.textContent = text;
}

function showEmptyCards() {
  for (const method of METHODS) say(method, "not asked yet", "empty");
  if (!state.support) {
    say("adapted", "", "empty");
    card("adapted").querySelector(".said").append(make("a", { href: "#task" }, "Show it some examples"), " first.");
  }
}

async function ask(event) {
  event?.preventDefault();
  const question = $("question").value.trim();
  if (!question) return;
  const run = ++state.run;
  state.asked = question;
  state.answers = {};
  problem("ask-problem");
  showEmptyCards();
  for (const method of METHODS) card(method).querySelector(".cost").hidden = true;
  const models = { "vanilla-rag": "vanilla-rag", base: "base", "adapted": state.support?.model };
  // one after another: side by side they would share the machine, and their costs with it
  for (const method of METHODS.filter((name) => models[name])) {
    say(method, "", "waiting");
    try {
      const found = await stream(models[method], question, (text) => run === state.run && say(method, text, "waiting"));
      if (run !== state.run) return;
      state.answers[method] = found;
      say(method, found.text || found.refusal || "(no answer)", found.text ? "" : "empty");
      showCosts();
      if (found.passages.length || !state.passages.length) showEvidence(found);
    } catch (error) {
      if (run !== state.run) return;
      say(method, "", "empty");
      problem("ask-problem", why(error));
      return;
    }
  }
}

const ms = (value) => (value >= 1000 ? `${(value / 1000).toFixed(value >= 10000 ? 0 : 1)} s` : `${Math.round(value)} ms`);

function costOf(method) {
  const { timings } = state.answers[method];
  const adapt = method === "adapted" ? (state.support.adapt_ms ?? 0) : 0;
  return { adapt, read: timings.read, write: timings.write, total: adapt + timings.read + timings.write };
}

function showCosts() {
  const shown = METHODS.filter((method) => state.answers[method]);
  const most = Math.max(...shown.map((method) => costOf(method).total));
  for (const method of shown) {
    const cost = costOf(method);
    const { tokens, read } = state.answers[method];
    const [bar, list] = [make("div", { className: "bar" }), make("dl")];
    const lines = [
      ["adapt", "adapt, once", cost.adapt],
      ["read", `read ${read} tokens`, cost.read],
      ["write", `write ${tokens}`, cost.write],
    ];
    for (const [name, label, value] of lines) {
      const part = make("i", { className: name });
      part.style.setProperty("--share", value / most);
      bar.append(part);
      const number = make("dd", {}, value ? ms(value) : "none");
      list.append(make("div", {}, make("dt", { className: `key ${name}` }, label), number));
    }
    const place = card(method).querySelector(".cost");
    place.replaceChildren(bar, list);
    place.hidden = false;
  }
}

function showEvidence(found) {
  state.passages = found.passages;
  $("evidence-part").hidden = false;
  const there = METHODS.filter((method) => state.answers[method]);
  const method = there.includes(state.marking) ? state.marking : there.at(-1);
  document.querySelector(`#marking input[value="${method}"]`).checked = true;
  for (const input of document.querySelectorAll("#marking input")) {
    input.disabled = !state.answers[input.value];
  }
  $("cut").hidden = !found.cut;
  $("cut").textContent = `${found.cut} of them shortened or left out to fit the context.`;
  drawEvidence();
}

function drawEvidence() {
  const method = document.querySelector("#marking input:checked").value;
  const answer = state.answers[method]?.text ?? "";
  const mark = marker(state.passages.flatMap((passage) => [passage.title, passage.text]), answer);
  const nodes = (text) => mark(text).map((piece) => (piece.marked ? make("mark", {}, piece.text) : piece.text));
  const items = state.passages.map((passage) => make(
    "li", {}, make("strong", {}, ...nodes(passage.title || "Passage")), make("p", {}, ...nodes(passage.text)),
  ));
  if (!items.length) items.push(make("li", {}, "No passage fits this question: the model answered without evidence."));
  $("evidence").replaceChildren(...items);
}

// --- examples

function addRow(question = "", answer = "", passages = null) {
  const row = $("row").content.cloneNode(true).firstElementChild;
  row.querySelector(".q").value = question;
  if (passages) row.given = { question, passages }; // they go with this question alone
  row.querySelector(".a").value = answer;
  const number = $("rows").children.length;
  row.querySelector(".q").placeholder = ["Who repairs the pump?", "When is the office open?", "Which cable fits?"][number] ?? "";
  row.querySelector(".a").placeholder = ["the workshop in Turin", "9 to 5", "type B, 2 m"][number] ?? "";
  row.querySelector(".remove").addEventListener("click", () => {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    (next?.querySelector(".q") ?? $("more")).focus();
  });
  $("rows").append(row);
  return row;
}

function fillRows(pairs) {
  $("rows").replaceChildren();
  for (const [question, answer, passages] of pairs) addRow(question, answer, passages);
  while ($("rows").children.length < 3) addRow();
}

function examples() {
  const rows = [...$("rows").children].map((row) => {
    const question = row.querySelector(".q").value.trim();
    const given = row.given?.question === question ? { passages: row.given.passages } : {};
    return { question, answer: row.querySelector(".a").value.trim(), ...given };
  });
  return rows.filter((row) => row.question || row.answer);
}

async function adapt(event) {
  event.preventDefault();
  const shown = examples();
  if (!shown.length) {
    problem("adapt-problem", "Write at least one question with its answer.");
    document.querySelector("#rows .q")?.focus();
    return;
  }
  const button = $("adapt").querySelector("[type=submit]");
  button.disabled = true;
  $("adapted").textContent = "";
  await tried(async () => {
    use(await read("/v1/supports", { method: "POST", body: { demonstrations: shown, task: "page" } }));
    await listSupports();
    if (state.asked && state.asked === $("question").value.trim()) await ask();
  });
  button.disabled = false;
}

function use(support) {
  state.support = support;
  const count = support ? support.demonstrations.length : 0;
  $("adapted-to").textContent = support ? `to ${count === 1 ? "1 example" : `${count} examples`}` : "to your examples";
  const took = support?.adapt_ms == null ? "" : `Adapted in ${ms(support.adapt_ms)}. `;
  $("adapted").textContent = support ? `${took}Any client can ask it as ${support.model}.` : "";
  $("forget").hidden = !support;
  $("help-part").hidden = count < 2;
  $("evaluating").textContent = "";
  $("scores").replaceChildren();
  if (!state.asked) showEmptyCards();
  drawMap(support);
}

async function listSupports() {
  const { data } = await read("/v1/supports");
  $("saved-part").hidden = !data.length;
  const options = data.map((support) => {
    const first = support.demonstrations[0];
    const more = support.demonstrations.length - 1;
    const option = new Option(`${first.question} → ${first.answer}${more ? ` (+${more})` : ""}`, support.id);
    option.selected = support.id === state.support?.id;
    return option;
  });
  $("saved").replaceChildren(new Option("none", ""), ...options);
  $("saved").value = state.support?.id ?? "";
}

const choose = () => tried(async () => {
  const support = $("saved").value ? await read(`/v1/supports/${$("saved").value}`) : null;
  // passages that came along with an example stay with it, others are found anew
  const own = (shown) => (shown.passages.every((passage) => passage.id.startsWith("given-")) ? shown.passages : null);
  if (support) fillRows(support.demonstrations.map((shown) => [shown.question, shown.answer, own(shown)]));
  use(support);
});

const forget = () => tried(async () => {
  await call(`/v1/supports/${state.support.id}`, { method: "DELETE" });
  use(null);
  await listSupports();
  ($("saved-part").hidden ? document.querySelector("#rows .q") : $("saved")).focus();
});

// --- does it help?

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function evaluate() {
  const support = state.support.id;
  const here = () => state.support?.id === support;
  $("evaluate").disabled = true;
  $("stop").hidden = false;
  $("scores").replaceChildren();
  let said = "";
  await tried(async () => {
    let view = await read("/v1/evaluations", { method: "POST", body: { support } });
    state.evaluation = view.id;
    while (view.status === "running" && here()) {
      $("evaluating").textContent = view.total ? `${view.done} of ${view.total} answers: ${view.doing}` : view.doing;
      await pause(1);
      view = await read(`/v1/evaluations/${view.id}`);
    }
    said = view.status === "cancelled" ? "Stopped." : view.advice;
    if (here()) $("scores").replaceChildren(...view.tables.filter((table) => table.rows.length).map(drawTable));
  });
  if (here()) $("evaluating").textContent = said;
  $("evaluate").disabled = false;
  $("stop").hidden = true;
}

function drawTable({ caption, columns, rows }) {
  const table = make("table", { className: "scores" });
  table.createCaption().textContent = caption;
  table.createTHead().insertRow().append(...columns.map((name) => heading(name, "col")));
  const body = table.createTBody();
  for (const [name, ...values] of rows) {
    const row = body.insertRow();
    row.append(heading(name, "row"));
    for (const value of values) row.insertCell().textContent = value;
  }
  return table;
}

// --- the heat map

function drawMap(support) {
  // nothing to draw where the model was not adapted by an update, or not yet
  const names = Object.keys(support?.norms ?? {});
  $("map-part").hidden = !names.length;
  if (!names.length) return;
  const layers = support.norms[names[0]].length;
  const most = Math.max(...names.flatMap((name) => support.norms[name]));
  const head = make("tr", {}, heading("", "col"));
  for (let layer = 0; layer < layers; layer++) {
    const every = layers > 12 ? 5 : 1;
    head.append(heading((layer + 1) % every === 0 || layer === 0 ? String(layer + 1) : "", "col", `layer ${layer + 1}`));
  }
  const rows = names.map((name) => make("tr", {}, heading(name, "row"), ...support.norms[name].map((value, layer) => {
    const shown = value.toPrecision(2);
    const cell = make("td", { title: `${name}, layer ${layer + 1}: ${shown}` }, make("span", {}, shown));
    cell.style.setProperty("--heat-share", most ? value / most : 0);
    return cell;
  })));
  $("map").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
  $("most").textContent = most.toPrecision(2);
  const [where, layer] = names
    .flatMap((name) => support.norms[name].map((value, i) => [name, i + 1, value]))
    .reduce((best, one) => (one[2] > best[2] ? one : best));
  $("map-words").textContent =
    `Size of the change to the q, k and v weights of each layer (Frobenius norm). Largest: ${where}, layer ${layer}.`;
}

function heading(text, scope, label) {
  const cell = make("th", { scope }, text);
  if (label) cell.setAttribute("aria-label", label);
  return cell;
}

// --- start

async function start() {
  try {
    const health = await read("/health");
    $("about").textContent = `${health.backbone}, base adapter ${health.base}, raggd ${health.version}`;
    $("example").hidden = health.corpus !== "embedded";
    await listSupports();
  } catch (error) {
    if ($("key-form").hidden) problem("ask-problem", error.message);
  }
}

fillRows([]);
showEmptyCards();
$("ask").addEventListener("submit", ask);
$("adapt").addEventListener("submit", adapt);
$("more").addEventListener("click", () => addRow().querySelector(".q").focus());
$("saved").addEventListener("change", choose);
$("forget").addEventListener("click", forget);
$("evaluate").addEventListener("click", evaluate);
$("stop").addEventListener("click", () => tried(() => call(`/v1/evaluations/${state.evaluation}`, { method: "DELETE" })));
$("marking").addEventListener("change", (event) => {
  state.marking = event.target.value;
  drawEvidence();
});
$("example").addEventListener("click", () => {
  fillRows(EXAMPLE.rows);
  if (!$("question").value.trim()) $("question").value = EXAMPLE.question;
});
$("ready").append(...Object.keys(READY).map((name) => new Option(name)));
$("ready").addEventListener("change", (event) => {
  const chosen = READY[event.target.value] ?? [];
  if (chosen.length) fillRows(chosen.map((shown) => [shown.question, shown.answer, shown.passages]));
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("raggd-key", $("key").value);
  $("key-form").hidden = true;
  start();
});
start();

/** The page: a text -> answers of the models of this server. What is typed goes to this server only, and is not kept. */

import { Card, element, spoken } from "./cards.js";
import { watchLoad } from "./load.js";
import { keepToken, read, send } from "./server.js";

const DEBOUNCE_MS = 250;
const ASKED_AT_FIRST = 12; // models, where each needs a request of its own
const FIELD_NAMES = { text: "Text", text_b: "Second text", choice: "Choice" };
const ALL = "all";

const at = (id) => document.getElementById(id);
let models = []; // {name, fields, metadata, box, card}
let listed = ""; // names as the server gave them
let hasAll = false;
let timer = 0;
const told = {}; // what each part of the page met last
let request = new AbortController();

const asked = () => models.filter((model) => model.box.checked);
const texts = () => Object.fromEntries([...at("fields").querySelectorAll("textarea")].map((t) => [t.name, t.value]));

/** Show what a part of the page met last, in the server's own words, and ask for the token if one is needed. */
function report(part, errors) {
  told[part] = errors;
  const sentences = [...new Set(Object.values(told).flat().map((error) => error.message))];
  if (sentences.join("\n") !== [...at("error").children].map((p) => p.textContent).join("\n")) {
    at("error").replaceChildren(...sentences.map((textContent) => element("p", { textContent })));
  }
  if (errors.some((error) => error.status === 401) && at("token").hidden) {
    at("token").hidden = false;
    at("token-value").focus();
  }
}

/** Read the list of models, and make the page anew if it has changed. */
async function loadModels() {
  const names = (await read("v2/models")).models;
  if (names.join("\n") === listed) return;
  const kept = new Map(models.map((model) => [model.name, model.box.checked]));
  const wanted = names.filter((name) => name !== ALL);
  const metadata = await Promise.all(wanted.map((name) => metadataOf(name)));
  listed = names.join("\n");
  hasAll = names.includes(ALL);
  models = metadata.map((each, i) => makeModel(each, i, kept.get(each.name) ?? (hasAll || i < ASKED_AT_FIRST)));
  at("choices").replaceChildren(...models.map((model) => element("label", {}, model.box, ` ${model.name}`)));
  at("models").hidden = models.length < 2;
  chosen();
}

const metadataOf = (name) => read(`v2/models/${encodeURIComponent(name)}`);

function makeModel(metadata, number, checked) {
  const { name, inputs } = metadata;
  const fields = inputs.filter((input) => input.datatype === "BYTES").map((input) => input.name);
  const refresh = () => metadataOf(name).catch((error) => report("models", [error]));
  const box = element("input", { type: "checkbox", name, checked });
  box.addEventListener("change", chosen);
  return { name, fields, box, card: new Card(metadata, number, refresh) };
}

/** Show the fields and cards of the models that are asked, keep what was typed, and ask. */
function chosen() {
  const typed = texts();
  const wanted = [...new Set([...asked(), ...models.slice(0, 1)].flatMap((model) => model.fields))];
  if (wanted.join() !== Object.keys(typed).join()) {
    at("fields").replaceChildren(
      ...wanted.flatMap((name) => [
        element("label", { htmlFor: `field-${name}`, textContent: FIELD_NAMES[name] ?? name }),
        // A browser's spelling service may be another host's.
        element("textarea", { id: `field-${name}`, name, value: typed[name] ?? "", rows: 2, spellcheck: false }),
      ]),
    );
  }
  at("cards").replaceChildren(...asked().map((model) => model.card.root));
  ask();
}

/** Ask at once; what an older request would still answer is dropped. */
async function ask() {
  clearTimeout(timer);
  request.abort();
  request = new AbortController();
  const { signal } = request;
  const typed = texts();
  const missing = (model) => model.fields.find((field) => !typed[field]);
  const ready = asked().filter((model) => !missing(model));
  for (const model of asked()) {
    if (ready.includes(model)) model.card.busy(true);
    else model.card.clear(`No ${(FIELD_NAMES[missing(model)] ?? missing(model)).toLowerCase()} yet`);
  }
  const answers = await askAll(ready, typed, signal);
  if (signal.aborted) return;
  at("said").textContent = answers.said.join("; ");
  report("answers", answers.errors);
}

/** Ask each model, or all at once where the server can. Cards are filled as answers come. */
async function askAll(ready, typed, signal) {
  const said = new Map();
  const errors = [];
  const one = async (task, take) => {
    try {
      const { fields } = ready.find((model) => task === ALL || model.name === task);
      const row = fields.length === 1 ? typed[fields[0]] : fields.map((field) => typed[field]);
      const answer = await send("predict", { body: { texts: [row], task }, signal });
      if (!signal.aborted) take(JSON.parse(answer.text).predictions[0], answer);
    } catch (error) {
      if (!signal.aborted) errors.push(error);
    }
  };
  const fill = (model) => (prediction, answer) => {
    model.card.show(prediction, answer);
    said.set(model, spoken(model.name, prediction));
  };
  if (atOnce(ready)) {
    await one(ALL, (predictions, answer) => {
      for (const model of ready.filter(({ name }) => name in predictions)) fill(model)(predictions[model.name], answer);
    });
  }
  if (!errors.length) {
    const left = ready.filter((model) => !said.has(model));
    await Promise.all(left.map((model) => one(model.name, fill(model))));
  }
  if (errors.length && !signal.aborted) {
    for (const model of ready.filter((each) => !said.has(each))) model.card.clear("No answer");
  }
  return { said: [...said.values()], errors };
}

/** Whether one request can ask them: all models are asked, and all take the same fields. */
function atOnce(ready) {
  const same = new Set(ready.map((model) => model.fields.join())).size === 1;
  return hasAll && ready.length > 1 && ready.length === models.length && same;
}

function clear() {
  for (const field of at("fields").querySelectorAll("textarea")) field.value = "";
  at("fields").querySelector("textarea")?.focus();
  ask();
}

function tick(checked) {
  for (const model of models) model.box.checked = checked;
  chosen();
}

function listen() {
  at("fields").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, DEBOUNCE_MS);
  });
  at("ask").addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") clear();
    else if (event.key === "Enter" && !event.shiftKey && event.target.localName === "textarea") {
      event.preventDefault();
      ask();
    }
  });
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  at("clear").addEventListener("click", clear);
  at("every").addEventListener("click", () => tick(true));
  at("none").addEventListener("click", () => tick(false));
  at("token").addEventListener("submit", (event) => {
    event.preventDefault();
    keepToken(at("token-value").value);
    at("token-value").value = "";
    at("token").hidden = true;
    start();
  });
}

/** Show what the server has, then ask what is typed already. */
async function start() {
  try {
    at("server").textContent = `version ${(await read("v2")).version}`;
    await loadModels();
    report("models", []);
    await ask();
    at("fields").querySelector("textarea")?.focus();
  } catch (error) {
    report("models", [error]);
  }
}

listen();
await start();
watchLoad(async () => {
  if (!at("token").hidden) return false; // without a token each reading would be refused
  await loadModels();
  report("models", []);
  return true;
}, (error) => report("load", error ? [error] : []));

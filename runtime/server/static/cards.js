/** Cards: one per model that is asked, with its answer and its model card. */

const SHOWN = 8; // bars
const TIMES = { "x-queue-time": "queue", "x-tokenization-time": "tokenize", "x-inference-time": "inference" };
const FACTS = {
  labels: "Labels",
  template: "Template",
  method: "Method",
  max_length: "Tokens at most",
  backbone: "Backbone",
  licence: "Licence",
  precision: "Precision",
  opset: "Opset",
  provider: "Provider",
};

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const percent = (probability) => `${(100 * probability).toFixed(1)} %`;

/** A card of one model. `refresh` returns its metadata as they are now, since the model may be swapped meanwhile. */
export class Card {
  constructor(model, number, refresh) {
    const title = element("h3", { id: `model-${number}`, textContent: model.name });
    this.label = element("p", { className: "label empty" });
    this.marks = element("div");
    this.bars = element("ol", { className: "bars" });
    this.times = element("p", { className: "times" });
    const facts = element("dl");
    facts.append(...factsOf(model));
    const details = element("details", {}, element("summary", { textContent: "Model card" }), facts);
    details.addEventListener("toggle", async () => {
      const fresh = details.open && (await refresh());
      if (fresh) facts.replaceChildren(...factsOf(fresh));
    });
    const parts = [title, this.label, this.marks, this.bars, this.times, details];
    this.root = element("article", { className: "card" }, ...parts);
    this.root.setAttribute("aria-labelledby", title.id);
    this.root.dataset.model = model.name;
    this.clear("No text yet");
  }

  clear(why) {
    this.label.textContent = why;
    this.label.classList.add("empty");
    for (const part of [this.marks, this.bars, this.times]) part.replaceChildren();
    this.busy(false);
  }

  busy(value) {
    this.root.setAttribute("aria-busy", String(value));
  }

  /** Show a prediction, and how long its request took. */
  show(prediction, { took, headers }) {
    const abstains = prediction.label === null;
    this.label.textContent = abstains ? "No label" : prediction.label;
    this.label.classList.toggle("empty", abstains);
    const marks = [];
    if (abstains) marks.push("The model abstains: no probability is high enough.");
    if (prediction.truncated) marks.push("The text is too long: the model read only a part of it.");
    this.marks.replaceChildren(...marks.map((mark) => element("span", { className: "mark", textContent: mark })));
    this.bars.replaceChildren(...barsOf(prediction.probabilities));
    this.times.textContent = timesOf(took, headers);
    this.busy(false);
  }
}

/** What a screen reader says of a prediction. */
export function spoken(name, { label, probabilities, truncated }) {
  const known = label !== null && label in probabilities ? `, ${percent(probabilities[label])}` : "";
  return `${name}: ${label ?? "no label, the model abstains"}${known}${truncated ? ", text cut" : ""}`;
}

function barsOf(probabilities) {
  const sorted = Object.entries(probabilities).sort((a, b) => b[1] - a[1]);
  const rows = sorted.slice(0, SHOWN).map(([label, probability]) => {
    const bar = element("span", { className: "bar" });
    bar.style.width = `${100 * probability}%`;
    const track = element("span", { className: "track", ariaHidden: "true" }, bar);
    const name = element("span", { className: "name", textContent: label });
    return element("li", {}, name, element("span", { className: "value", textContent: percent(probability) }), track);
  });
  if (sorted.length > SHOWN) rows.push(element("li", { textContent: `and ${sorted.length - SHOWN} more` }));
  return rows;
}

function timesOf(took, headers) {
  const parts = [`${took.toFixed(1)} ms in the browser`];
  for (const [header, name] of Object.entries(TIMES)) {
    const value = headers.get(header);
    if (value !== null) parts.push(`${name} ${Number(value).toFixed(1)} ms`);
  }
  return parts.map((part) => part.replaceAll(" ", "\u00a0")).join(" · "); // no line break within a part
}

/** The rows of a model card; what the server does not say is left out. */
function factsOf({ versions, parameters = {} }) {
  const rows = versions?.length ? [["Version", versions.join(", ")]] : [];
  for (const [key, name] of Object.entries(FACTS)) {
    if (parameters[key] != null && parameters[key].length !== 0) rows.push([name, plain(parameters[key])]);
  }
  const { parity_rows, parity_max_abs_diff, golden_max_abs_diff } = parameters;
  if (parity_max_abs_diff != null) {
    const over = parity_rows == null ? "" : ` on ${parity_rows} texts`;
    rows.push(["Parity", `logits differ from PyTorch's by at most ${small(parity_max_abs_diff)}${over}`]);
  }
  if (golden_max_abs_diff != null) {
    rows.push(["On this device", `logits differ from the export's by at most ${small(golden_max_abs_diff)}`]);
  }
  if (!rows.length) rows.push(["Facts", "this server tells none"]);
  return rows.flatMap(([name, value]) => [
    element("dt", { textContent: name }),
    element("dd", { textContent: value }),
  ]);
}

const small = (value) => Number(value).toPrecision(2);

function plain(value) {
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "object" ? Object.values(value).filter((part) => part != null).join(", ") : String(value);
}

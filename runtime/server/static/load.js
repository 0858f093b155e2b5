/** The load panel: reads GET /metrics again and again while the tab is seen. */

import { histogram, parse, quantile, since, total } from "./metrics.js";
import { send } from "./server.js";

const EVERY_MS = 2000;
const KEPT = 31; // readings: one minute
const NAMES = [
  "Requests per second",
  "Texts waiting",
  "Texts per batch",
  "Refused",
  "Queue p50 / p95",
  "Inference p50 / p95",
];

/**
 * Begin to read the load.
 * @param {() => Promise<boolean>} before called before each reading; false: skip it.
 * @param {(error: ?Error) => void} met called with what went wrong in a reading, or null.
 */
export function watchLoad(before, met) {
  const readings = [];
  const turn = async () => {
    try {
      if (document.visibilityState === "visible" && (await before())) {
        note(readings, (await send("metrics")).text);
        show(readings);
        met(null);
      }
    } catch (error) {
      readings.length = 0;
      show(readings);
      // 404: this server has no metrics, so the panel keeps its dashes.
      met(error.status === 404 ? null : error);
    }
    setTimeout(turn, EVERY_MS);
  };
  show(readings);
  turn();
}

/** Keep a reading; a server that was started again begins anew. */
function note(readings, text) {
  const samples = parse(text);
  const reading = {
    at: performance.now() / 1000,
    done: total(samples, "nv_inference_request_success"),
    refused: total(samples, "nv_inference_request_failure", (labels) => (labels.reason ?? "REJECTED") === "REJECTED"),
    waiting: total(samples, "te_queue_size"),
    batch: histogram(samples, "te_batch_next_size"),
    queue: histogram(samples, "te_request_queue_duration"),
    inference: histogram(samples, "te_request_inference_duration"),
  };
  if (reading.done < (readings.at(-1)?.done ?? 0)) readings.length = 0;
  readings.push(reading);
  if (readings.length > KEPT) readings.shift();
}

function show(readings) {
  const now = readings.at(-1);
  const rates = readings.slice(1).map((r, i) => (r.done - readings[i].done) / (r.at - readings[i].at));
  const batch = grown(readings, "batch");
  const values = [
    now?.done == null || !rates.length ? "–" : rates.at(-1).toFixed(1),
    now?.waiting ?? "–",
    batch?.count > 0 ? (batch.sum / batch.count).toFixed(1) : "–",
    now?.refused ?? "–",
    spread(grown(readings, "queue")),
    spread(grown(readings, "inference")),
  ];
  const list = document.getElementById("load");
  if (!list.children.length) {
    list.append(...NAMES.map((name) => pair(name)));
  }
  list.querySelectorAll("dd").forEach((dd, i) => (dd.textContent = values[i]));
  draw(now?.done == null ? [] : rates);
}

function pair(name) {
  const [div, dt, dd] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
  dt.textContent = name;
  div.append(dt, dd);
  return div;
}

/** What came into a histogram during the readings that are kept; null if the server has no such histogram. */
function grown(readings, name) {
  const [first, last] = [readings[0]?.[name], readings.at(-1)?.[name]];
  return first && last ? since(first, last) : null;
}

function spread(found) {
  const [half, most] = [0.5, 0.95].map((q) => found && quantile(found, q));
  return half == null ? "–" : `${milliseconds(half)} / ${milliseconds(most)}`;
}

function milliseconds(seconds) {
  const ms = seconds * 1000;
  return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

/** Draw the sparkline, newest right, in the 120 by 24 units of its view box. */
function draw(rates) {
  const svg = document.getElementById("spark");
  const most = Math.max(...rates, 0);
  const points = rates.map((rate, i) => {
    const x = 120 - (rates.length - 1 - i) * (120 / (KEPT - 2));
    return `${x.toFixed(1)},${(23 - (22 * rate) / (most || 1)).toFixed(1)}`;
  });
  svg.firstElementChild.setAttribute("points", points.join(" "));
  const said = `Requests per second over the last minute: now ${rates.at(-1)?.toFixed(1)}, at most ${most.toFixed(1)}`;
  svg.setAttribute("aria-label", rates.length ? said : "No requests per second known yet");
}

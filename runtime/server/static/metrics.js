/** Prometheus text -> numbers. */

const LINE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = { n: "\n" };

/**
 * Parse the Prometheus text format.
 * @returns {Map<string, {labels: Object<string, string>, value: number}[]>} samples by name.
 */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (!match) continue; // a comment or an empty line
    const [, name, inside, value] = match;
    const labels = {};
    for (const [, key, raw] of (inside ?? "").matchAll(LABEL)) {
      labels[key] = raw.replace(/\\(.)/g, (_, letter) => ESCAPED[letter] ?? letter);
    }
    if (!samples.has(name)) samples.set(name, []);
    samples.get(name).push({ labels, value: number(value) });
  }
  return samples;
}

/** The sum of a metric over its label values, or null if the server has no such metric. */
export function total(samples, name, keep = () => true) {
  const found = samples.get(name) ?? samples.get(`${name}_total`); // Triton's name, and Prometheus's form of it
  return found ? found.filter((s) => keep(s.labels)).reduce((sum, s) => sum + s.value, 0) : null;
}

/** A histogram, summed over its label values: `le` -> how many are at most that; and sum and count. Null if missing. */
export function histogram(samples, name) {
  const found = samples.get(`${name}_bucket`);
  if (!found) return null;
  const buckets = new Map();
  for (const { labels, value } of found) {
    const bound = number(labels.le);
    buckets.set(bound, (buckets.get(bound) ?? 0) + value);
  }
  return { buckets, sum: total(samples, `${name}_sum`) ?? 0, count: total(samples, `${name}_count`) ?? 0 };
}

/** What came into a histogram between two readings of it. */
export function since(before, now) {
  const buckets = new Map([...now.buckets].map(([bound, n]) => [bound, n - (before.buckets.get(bound) ?? 0)]));
  return { buckets, sum: now.sum - before.sum, count: now.count - before.count };
}

/** A quantile as Prometheus's histogram_quantile estimates it: linear within a bucket. Null without values. */
export function quantile({ buckets }, q) {
  const sorted = [...buckets].sort((a, b) => a[0] - b[0]);
  const count = sorted.at(-1)?.[1] ?? 0;
  if (!(count > 0)) return null;
  const rank = q * count;
  let [low, below] = [0, 0];
  for (const [bound, upTo] of sorted) {
    if (upTo >= rank && upTo > below) {
      return bound === Infinity ? low : low + ((bound - low) * (rank - below)) / (upTo - below);
    }
    [low, below] = [bound, upTo];
  }
  return low;
}

function number(text) {
  if (text === "+Inf") return Infinity;
  return text === "-Inf" ? -Infinity : Number(text);
}

// Predict labels with a bundle made by `ptexport export --target web`, with onnxruntime-web and without ptexport.
// usage: npm install onnxruntime-web @huggingface/tokenizers && node predict.mjs BUNDLE TEXT …
// In a browser, read() is `new Uint8Array(await (await fetch(url)).arrayBuffer())`; the rest stays the same.
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import { Tokenizer } from "@huggingface/tokenizers";

const [folder, ...texts] = process.argv.slice(2);
const read = async (name) => new Uint8Array(await readFile(`${folder}/${name}`));
const json = async (name) => JSON.parse(new TextDecoder().decode(await read(name)));

const tokenizer = new Tokenizer(await json("tokenizer.json"), await json("tokenizer_config.json"));
const { id2label } = await json("config.json");
const session = await ort.InferenceSession.create(await read("model.onnx"), {
  externalData: [{ path: "model.onnx.data", data: await read("model.onnx.data") }],
});
for (const text of texts) {
  const { ids, attention_mask, token_type_ids } = tokenizer.encode(text);
  const given = { input_ids: ids, attention_mask, token_type_ids: token_type_ids ?? ids.map(() => 0) };
  const feeds = {};
  for (const name of session.inputNames)
    feeds[name] = new ort.Tensor("int64", BigInt64Array.from(given[name], BigInt), [1, ids.length]);
  const logits = Array.from((await session.run(feeds)).logits.data);
  const powers = logits.map((logit) => Math.exp(logit - Math.max(...logits)));
  const sum = powers.reduce((a, b) => a + b);
  const best = powers.indexOf(Math.max(...powers));
  console.log(`${id2label[best]}\t${(powers[best] / sum).toFixed(3)}\t${text}`);
}

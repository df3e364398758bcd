/** The model: text encoder, generator and upscaler, run by onnxruntime-web. */

import { Tokenizer } from '@huggingface/tokenizers';
import * as ort from 'onnxruntime-web/wasm';

import { latent, slerp } from './latents.js';
import { read } from './store.js';
import { unpack } from './weights.js';

const REMEMBERED = 64; // prompts

/**
 * What the generator reads of a prompt.
 * @typedef {{tokens: Float32Array, mask: Uint8Array, pooled: Float32Array, count: number}} Text
 */

/** Its pictures are channels first, -1 to 1: colours as on white, then alpha if there is any. */
export class Model {
  /**
   * @param {object} site content of site.json
   * @param {URL | string} base address of the site
   */
  constructor(site, base) {
    this.site = site;
    this.base = base;
    this.texts = new Map();
  }

  /** @param {(loaded: number, total: number) => void} onProgress called as bytes arrive */
  async load(onProgress) {
    const { files } = this.site;
    const names = ['text_encoder', 'generator'];
    const listed = [
      files.runtime['ort.wasm.gz'],
      files.tokenizer,
      files.tokenizer_config,
      ...names.flatMap((name) => [files[name].graph, files[name].weights]),
    ];
    const total = listed.reduce((sum, file) => sum + file.bytes, 0);
    let loaded = 0;
    const get = (file) => read(file, this.base, (bytes) => onProgress((loaded += bytes), total));
    const networks = names.map((name) => this.open(name, get));
    const [runtime, tokenizer, config] = await Promise.all(listed.slice(0, 3).map(get));
    ort.env.wasm.numThreads = 1; // threads need headers that static hosts do not send
    ort.env.wasm.wasmBinary = runtime.buffer;
    const text = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
    this.tokenizer = new Tokenizer(text(tokenizer), text(config));
    for (const [i, name] of names.entries()) this[name] = await session(await networks[i]);
  }

  async loadUpscaler() {
    if (!this.site.files.upscaler) return;
    this.upscaler = await session(await this.open('upscaler', (file) => read(file, this.base)));
  }

  async open(name, get) {
    const { graph, weights, tensors, bits } = this.site.files[name];
    const [model, packed] = await Promise.all([get(graph), get(weights)]);
    return { model, name, data: unpack(packed, tensors, bits) };
  }

  /**
   * @param {string} prompt
   * @returns {Promise<Text>}
   */
  async encode(prompt) {
    const known = this.texts.get(prompt);
    if (known) return known;
    const ids = this.tokenize(prompt);
    const shape = [1, ids.length];
    const found = await this.text_encoder.run({
      ids: new ort.Tensor('int64', BigInt64Array.from(ids, BigInt), shape),
      attention_mask: new ort.Tensor('int64', new BigInt64Array(ids.length).fill(1n), shape),
    });
    const text = { count: ids.length };
    for (const name of ['tokens', 'mask', 'pooled']) text[name] = found[name].data.slice();
    if (this.texts.size >= REMEMBERED) this.texts.delete(this.texts.keys().next().value);
    this.texts.set(prompt, text);
    return text;
  }

  /** Numbers of the tokens; a long prompt loses its end but keeps the last, special token. */
  tokenize(prompt) {
    const { ids } = this.tokenizer.encode(prompt);
    const most = this.site.max_tokens;
    return ids.length <= most ? ids : [...ids.slice(0, most - 1), ids[ids.length - 1]];
  }

  /**
   * @param {Float32Array} z
   * @param {Text} text
   * @returns {Promise<Float32Array>}
   */
  async draw(z, text) {
    const { images } = await this.generator.run({ z: new ort.Tensor('float32', z, [1, z.length]), ...feeds(text) });
    return images.data;
  }

  /** The picture of a prompt and a seed. */
  async picture(prompt, seed) {
    return this.draw(latent(seed, this.site.latent_dim), await this.encode(prompt));
  }

  /**
   * A picture on the way from one prompt and seed to another, as imagen_pl/inference/interpolation.py draws it.
   * @param {{prompt: string, seed: number}} from
   * @param {{prompt: string, seed: number}} to
   * @param {number} share 0 to 1
   */
  async between(from, to, share) {
    const [a, b] = [await this.encode(from.prompt), await this.encode(to.prompt)];
    const size = this.site.latent_dim;
    return this.draw(slerp(latent(from.seed, size), latent(to.seed, size), share), blend(a, b, share));
  }

  /**
   * @param {Float32Array} picture at the generator's size
   * @param {string} prompt
   * @returns {Promise<Float32Array>} at `factor` times its size
   */
  async enlarge(picture, prompt) {
    const { width, height } = this.site;
    const levels = Float32Array.from(picture, (x) => Math.round((x + 1) * 127.5) / 127.5 - 1);
    const small = new ort.Tensor('float32', levels, [1, levels.length / (width * height), height, width]);
    const { images } = await this.upscaler.run({ small, ...feeds(await this.encode(prompt)) });
    return images.data;
  }
}

/** @param {{model: Uint8Array, data: Uint8Array, name: string}} network */
function session({ model, data, name }) {
  return ort.InferenceSession.create(model, {
    executionProviders: ['wasm'],
    externalData: [{ path: `${name}.weights`, data }],
  });
}

function feeds({ tokens, mask, pooled, count }) {
  const width = pooled.length;
  return {
    tokens: new ort.Tensor('float32', tokens, [1, count, width]),
    mask: new ort.Tensor('bool', mask, [1, count]),
    pooled: new ort.Tensor('float32', pooled, [1, width]),
  };
}

/** On the line from a to b; a token that only one of them has fades in or out. */
function blend(a, b, share) {
  const mix = (x, y) => x + (y - x) * share;
  const count = Math.max(a.count, b.count);
  const width = a.pooled.length;
  const tokens = new Float32Array(count * width);
  const mask = new Uint8Array(count);
  for (let i = 0; i < tokens.length; i++) tokens[i] = mix(a.tokens[i] ?? 0, b.tokens[i] ?? 0);
  for (let t = 0; t < count; t++) {
    mask[t] = (share < 1 && a.mask[t] === 1) || (share > 0 && b.mask[t] === 1) ? 1 : 0;
  }
  return { tokens, mask, pooled: a.pooled.map((x, i) => mix(x, b.pooled[i])), count };
}

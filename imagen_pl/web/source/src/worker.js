/** Runs the model beside the page, which stays responsive. Tasks are run one after the other. */

import { Model } from './network.js';
import { straight } from './pixels.js';

/** @type {Model} */
let model;
let base;
let upscaler = null;
const cancelled = new Set();
let tail = Promise.resolve();

const TASKS = { load, draw, film };

self.onmessage = ({ data }) => {
  if (data.task === 'cancel') {
    cancelled.add(data.of);
    return;
  }
  tail = tail.then(async () => {
    try {
      if (!cancelled.has(data.id)) await TASKS[data.task](data);
      self.postMessage({ id: data.id, kind: 'done', cancelled: cancelled.has(data.id) });
    } catch (error) {
      self.postMessage({ id: data.id, kind: 'error', message: String(error?.message ?? error) });
    }
  });
};

async function load({ id, site, address }) {
  base = address;
  model = new Model(site, base);
  await model.load((loaded, total) => self.postMessage({ id, kind: 'progress', loaded, total }));
}

/** The upscaler is loaded after the first pictures, which can be seen without it. */
function upscalerReady() {
  upscaler ??= model.loadUpscaler().catch((error) => {
    upscaler = null; // the next task tries again
    throw error;
  });
  return upscaler;
}

/** All pictures at the generator's size first, then enlarged. */
async function draw({ id, pictures, enlarge }) {
  const { width, height, factor } = model.site;
  const drawn = [];
  for (const [place, { prompt, seed }] of pictures.entries()) {
    if (await isCancelled(id)) return;
    drawn.push((await model.picture(prompt, seed)).slice());
    send(id, place, drawn[place], width, height, !enlarge || factor === 1);
  }
  if (!enlarge || factor === 1) return;
  await upscalerReady();
  for (const [place, { prompt }] of pictures.entries()) {
    if (await isCancelled(id)) return;
    send(id, place, await model.enlarge(drawn[place], prompt), width * factor, height * factor, true);
  }
}

/** Frames from each keyframe to the next and back to the first. */
async function film({ id, keyframes, frames, enlarge }) {
  const { width, height, factor } = model.site;
  const large = enlarge && factor > 1;
  if (large) await upscalerReady();
  let place = 0;
  for (const [k, from] of keyframes.entries()) {
    const to = keyframes[(k + 1) % keyframes.length];
    for (let frame = 0; frame < frames; frame++) {
      if (await isCancelled(id)) return;
      const share = frame / frames;
      let picture = await model.between(from, to, share);
      if (large) picture = await model.enlarge(picture, share < 0.5 ? from.prompt : to.prompt);
      send(id, place++, picture, large ? width * factor : width, large ? height * factor : height, true);
    }
  }
}

function send(id, place, picture, width, height, finished) {
  const pixels = straight(picture, width, height);
  self.postMessage({ id, kind: 'picture', place, pixels, width, height, finished }, [pixels.buffer]);
}

/** Lets messages in first, one of which may cancel the task. */
async function isCancelled(id) {
  await new Promise((resolve) => setTimeout(resolve));
  return cancelled.has(id);
}

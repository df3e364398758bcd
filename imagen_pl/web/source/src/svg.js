/**
 * A picture as SVG: enlarged, reduced to as few colours as possible, and traced by vtracer, as
 * imagen_pl/imaging/svg.py does it.
 */

import start, { to_svg as trace } from 'vtracer-wasm';
import address from 'vtracer-wasm/vtracer.wasm?url';

import { onWhite } from './pixels.js';

const TRACED_PX = 512; // longer side to which pictures are enlarged
const MAX_ERROR = 8; // mean difference of the reduced picture, levels of 255
const WRONG = 72; // and at most this share of its pixels may differ by more levels than this:
const MAX_WRONG = 0.01;
const COLOURS = [2, 3, 4, 6, 8];
const WHITE = 240; // channels from here on are background
const ROUNDS = 8; // of k-means

/**
 * @param {ImageData} picture
 * @param {Record<string, string | number>} facts
 * @returns {Promise<Blob>}
 */
export async function svg(picture, facts) {
  await start({ module_or_path: new URL(address, import.meta.url) });
  const { width, height } = picture;
  const flat = new ImageData(onWhite(picture.data), width, height);
  const factor = Math.max(1, Math.floor(TRACED_PX / Math.max(width, height)));
  const large = enlarged(flat, factor);
  let reduced;
  for (const colours of COLOURS) {
    reduced = reduce(large, colours);
    if (shows(reduced, flat, factor)) break;
  }
  const traced = trace(new Uint8Array(reduced.data.buffer), reduced.width, reduced.height, {
    binary: false,
    mode: 'spline',
    hierarchical: 'stacked',
    cornerThreshold: (60 * Math.PI) / 180,
    lengthThreshold: 4,
    maxIterations: 10,
    spliceThreshold: (45 * Math.PI) / 180,
    filterSpeckle: (TRACED_PX / 64) ** 2,
    colorPrecision: 0, // bits that are left out
    layerDifference: 0,
    pathPrecision: 1,
  });
  const paths = traced.match(/<path [^>]*\/>/g) ?? [];
  if (paths.length && isWhite(paths[0])) paths.shift(); // stacked shapes begin with the background
  const about = Object.entries(facts).map(([name, value]) => `${name}: ${value}`).join('; ');
  const head =
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" ` +
    `viewBox="0 0 ${large.width} ${large.height}">`;
  const text = `${head}\n<desc>${escape(about)}</desc>\n${paths.join('\n')}\n</svg>\n`;
  return new Blob([text], { type: 'image/svg+xml' });
}

function escape(text) {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

function enlarged(picture, factor) {
  const [width, height] = [picture.width * factor, picture.height * factor];
  const small = new OffscreenCanvas(picture.width, picture.height);
  small.getContext('2d').putImageData(picture, 0, 0);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(small, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

/** The picture in so many colours, by k-means from the colours that lie farthest apart; nearly white is white. */
function reduce(picture, colours) {
  const { data } = picture;
  const count = data.length / 4;
  const labels = new Uint8Array(count);
  let centres = farApart(data, colours);
  for (let round = 0; round < ROUNDS; round++) {
    const sums = centres.map(() => [0, 0, 0, 0]);
    for (let i = 0; i < count; i++) {
      labels[i] = nearest(data, 4 * i, centres);
      const sum = sums[labels[i]];
      for (let c = 0; c < 3; c++) sum[c] += data[4 * i + c];
      sum[3]++;
    }
    centres = sums.map((sum, k) => (sum[3] ? sum.slice(0, 3).map((x) => x / sum[3]) : centres[k]));
  }
  const shown = centres.map((_, k) => median(data, labels, k));
  const reduced = new ImageData(picture.width, picture.height);
  for (let i = 0; i < count; i++) reduced.data.set([...shown[labels[i]], 255], 4 * i);
  return reduced;
}

function farApart(data, colours) {
  const step = 4 * Math.max(1, Math.floor(data.length / 4 / 4096));
  const centres = [[255, 255, 255]];
  while (centres.length < colours) {
    let [farthest, most] = [0, -1];
    for (let i = 0; i < data.length; i += step) {
      const distance = Math.min(...centres.map((centre) => apart(data, i, centre)));
      if (distance > most) [farthest, most] = [i, distance];
    }
    centres.push([...data.slice(farthest, farthest + 3)]);
  }
  return centres;
}

function nearest(data, i, centres) {
  let [best, least] = [0, Infinity];
  for (let k = 0; k < centres.length; k++) {
    const distance = apart(data, i, centres[k]);
    if (distance < least) [best, least] = [k, distance];
  }
  return best;
}

function apart(data, i, [red, green, blue]) {
  return (data[i] - red) ** 2 + (data[i + 1] - green) ** 2 + (data[i + 2] - blue) ** 2;
}

function median(data, labels, label) {
  const counts = [0, 1, 2].map(() => new Uint32Array(256));
  let total = 0;
  for (let i = 0; i < labels.length; i++) {
    if (labels[i] !== label) continue;
    total++;
    for (let c = 0; c < 3; c++) counts[c][data[4 * i + c]]++;
  }
  const colour = counts.map((levels) => {
    let [level, seen] = [0, levels[0]];
    while (level < 255 && seen * 2 < total) seen += levels[++level];
    return level;
  });
  return colour.every((x) => x >= WHITE) ? [255, 255, 255] : colour;
}

/** Whether it is close enough at the original's size, where smooth edges are mixtures of colours again. */
function shows(reduced, original, factor) {
  const { width, height } = original;
  let [difference, wrong] = [0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let largest = 0;
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let v = 0; v < factor; v++) {
          for (let u = 0; u < factor; u++) {
            sum += reduced.data[4 * ((y * factor + v) * reduced.width + x * factor + u) + c];
          }
        }
        const gap = Math.abs(sum / factor ** 2 - original.data[4 * (y * width + x) + c]);
        difference += gap;
        largest = Math.max(largest, gap);
      }
      if (largest > WRONG) wrong++;
    }
  }
  const area = width * height;
  return difference / (3 * area) <= MAX_ERROR && wrong / area <= MAX_WRONG;
}

function isWhite(path) {
  const [, colour] = path.match(/fill="#([0-9A-Fa-f]{6})"/) ?? [];
  return colour !== undefined && [0, 2, 4].every((i) => parseInt(colour.slice(i, i + 2), 16) >= WHITE);
}

/** An animation as a GIF file. */

import { GIFEncoder, applyPalette, quantize } from 'gifenc';

import { onWhite } from './pixels.js';

/**
 * @param {ImageData[]} frames
 * @param {number} fps frames a second
 * @returns {Blob}
 */
export function gif(frames, fps) {
  const file = GIFEncoder();
  for (const { data, width, height } of frames) {
    const pixels = onWhite(data);
    const palette = quantize(pixels, 256);
    file.writeFrame(applyPalette(pixels, palette), width, height, { palette, delay: 1000 / fps, repeat: 0 });
  }
  file.finish();
  return new Blob([file.bytes()], { type: 'image/gif' });
}

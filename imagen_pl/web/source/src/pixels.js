/** From the networks' numbers to pixels. */

/**
 * RGBA bytes of a picture, with straight alpha, as imagen_pl/imaging/transparency.py stores them.
 * @param {Float32Array} picture channels first, -1 to 1, of 3 or 4 channels
 * @param {number} width
 * @param {number} height
 * @returns {Uint8ClampedArray}
 */
export function straight(picture, width, height) {
  const area = width * height;
  const pixels = new Uint8ClampedArray(4 * area).fill(255);
  const level = (x) => Math.min(255, Math.max(0, Math.round((x + 1) * 127.5)));
  const hasAlpha = picture.length === 4 * area;
  for (let i = 0; i < area; i++) {
    const alpha = hasAlpha ? level(picture[3 * area + i]) : 255;
    for (let c = 0; c < 3; c++) {
      const seen = level(picture[c * area + i]);
      pixels[4 * i + c] = alpha ? 255 - ((255 - seen) * 255) / alpha : 255;
    }
    pixels[4 * i + 3] = alpha;
  }
  return pixels;
}

/**
 * RGBA bytes without transparency, on white.
 * @param {Uint8ClampedArray} pixels with straight alpha
 * @returns {Uint8ClampedArray}
 */
export function onWhite(pixels) {
  const flat = new Uint8ClampedArray(pixels.length).fill(255);
  for (let i = 0; i < pixels.length; i += 4) {
    const opacity = pixels[i + 3] / 255;
    for (let c = 0; c < 3; c++) flat[i + c] = 255 + (pixels[i + c] - 255) * opacity;
  }
  return flat;
}

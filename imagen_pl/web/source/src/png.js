/** PNG files that say how they were drawn, as those of `imagen-pl sample` do. */

/**
 * @param {ImageData} picture
 * @param {Record<string, string | number>} facts
 * @returns {Promise<Blob>}
 */
export async function png(picture, facts) {
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  canvas.getContext('2d').putImageData(picture, 0, 0);
  const plain = new Uint8Array(await (await canvas.convertToBlob({ type: 'image/png' })).arrayBuffer());
  const afterHeader = 33; // signature 8, header chunk 25
  const chunks = Object.entries(facts).map(([name, value]) => textChunk(name, String(value)));
  return new Blob([plain.subarray(0, afterHeader), ...chunks, plain.subarray(afterHeader)], { type: 'image/png' });
}

/** An iTXt chunk: keyword, four zero bytes (not compressed, no language, no translation), UTF-8. */
function textChunk(name, value) {
  const encode = (text) => new TextEncoder().encode(text);
  const body = new Uint8Array([...encode('iTXt'), ...encode(name), 0, 0, 0, 0, 0, ...encode(value)]);
  const chunk = new Uint8Array(body.length + 8);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, body.length - 4);
  chunk.set(body, 4);
  view.setUint32(4 + body.length, crc32(body));
  return chunk;
}

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return (crc ^ 0xffffffff) >>> 0;
}

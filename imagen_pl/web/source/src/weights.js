/** Unpacks the weights that imagen_pl/inference/packed_weights.py has packed; the formats are described there. */

const GROUP = 128;
const HALF = 0;

/**
 * The external data of an ONNX file: all of its large tensors as float32.
 * @param {Uint8Array} packed
 * @param {number[]} tensors number of values of each
 * @param {number} bits of a value; 0 is float16
 * @returns {Uint8Array}
 */
export function unpack(packed, tensors, bits) {
  const values = new Float32Array(tensors.reduce((sum, size) => sum + size, 0));
  let place = 0;
  let start = 0;
  for (const size of tensors) {
    const target = values.subarray(start, start + size);
    place += bits === HALF ? unpackHalf(packed, place, target) : unpackCodes(packed, place, target, bits);
    start += size;
  }
  return new Uint8Array(values.buffer);
}

/** @returns {number} how many bytes it has read */
function unpackHalf(packed, place, target) {
  const bytes = packed.slice(place, place + 2 * target.length);
  const table = (halves ??= halfTable());
  const codes = new Uint16Array(bytes.buffer);
  for (let i = 0; i < target.length; i++) target[i] = table[codes[i]];
  return bytes.length;
}

/** @returns {number} how many bytes it has read */
function unpackCodes(packed, place, target, bits) {
  const count = target.length;
  const groups = Math.ceil(count / GROUP);
  const largest = new Float32Array(packed.slice(place, place + 4 * groups).buffer);
  const low = place + 4 * groups;
  const bytes = bits >> 3;
  const left = bits & 7;
  const each = left ? 8 / left : 1;
  const high = low + bytes * count;
  const most = 2 ** (bits - 1) - 1;
  const mask = (1 << left) - 1;
  for (let group = 0, i = 0; group < groups; group++) {
    const scale = largest[group] / most;
    for (const end = Math.min(count, i + GROUP); i < end; i++) {
      let code = packed[low + i];
      if (bytes > 1) code |= packed[low + count + i] << 8;
      if (bytes > 2) code |= packed[low + 2 * count + i] << 16;
      if (left) code |= ((packed[high + ((i / each) | 0)] >> (left * (i % each))) & mask) << (8 * bytes);
      target[i] = scale * (code - most);
    }
  }
  return 4 * groups + bytes * count + (left ? Math.ceil(count / each) : 0);
}

let halves = null;

/** The value of each of the 65,536 float16. */
function halfTable() {
  const table = new Float32Array(65536);
  for (let code = 0; code < 65536; code++) {
    const sign = code & 0x8000 ? -1 : 1;
    const exponent = (code >> 10) & 31;
    const fraction = code & 1023;
    if (exponent === 0) table[code] = sign * fraction * 2 ** -24;
    else if (exponent === 31) table[code] = fraction ? NaN : sign * Infinity;
    else table[code] = sign * (1024 + fraction) * 2 ** (exponent - 25);
  }
  return table;
}

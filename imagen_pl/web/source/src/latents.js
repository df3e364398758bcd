/**
 * Latents of a seed, as imagen_pl/models/latents.py draws them with torch: the same seed gives the same
 * picture here and in Python.
 */

const MASK_64 = 0xffffffffffffffffn;

/**
 * One 63-bit seed from several numbers (splitmix64), as `mix_seed` in imagen_pl/models/latents.py.
 * @param {...(bigint | number)} parts
 * @returns {bigint}
 */
export function mixSeed(...parts) {
  let mixed = 0n;
  for (const part of parts) {
    mixed = (mixed + BigInt(part) + 0x9e3779b97f4a7c15n) & MASK_64;
    mixed = ((mixed ^ (mixed >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK_64;
    mixed = ((mixed ^ (mixed >> 27n)) * 0x94d049bb133111ebn) & MASK_64;
    mixed ^= mixed >> 31n;
  }
  return mixed >> 1n;
}

/** Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998): torch's generator on the CPU. */
export class MersenneTwister {
  /** @param {number} seed 32 bits */
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const last = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, last) + i;
    }
    this.place = 624;
  }

  /** @returns {number} the next 32 random bits */
  next() {
    if (this.place === 624) this.renew();
    let bits = this.state[this.place++];
    bits ^= bits >>> 11;
    bits ^= (bits << 7) & 0x9d2c5680;
    bits ^= (bits << 15) & 0xefc60000;
    bits ^= bits >>> 18;
    return bits >>> 0;
  }

  renew() {
    const state = this.state;
    for (let i = 0; i < 624; i++) {
      const bits = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
    }
    this.place = 0;
  }
}

/**
 * Standard normal numbers, as `torch.randn(count)` draws them (Box-Muller).
 * @param {bigint} seed
 * @param {number} count
 * @returns {Float32Array}
 */
export function randn(seed, count) {
  const source = new MersenneTwister(Number(seed & 0xffffffffn));
  return count < 16 ? fewNormals(source, count) : manyNormals(source, count);
}

/** torch draws 16 numbers and more in groups of 16, of 24 random bits each. */
function manyNormals(source, count) {
  const uniform = () => (source.next() & 0xffffff) / 2 ** 24;
  const values = Float32Array.from({ length: count }, uniform);
  const pair = (start) => {
    for (let i = start; i < start + 8; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - values[i]));
      const angle = 2 * Math.PI * values[i + 8];
      values[i] = radius * Math.cos(angle);
      values[i + 8] = radius * Math.sin(angle);
    }
  };
  for (let start = 0; start + 16 <= count; start += 16) pair(start);
  if (count % 16) {
    // The last 16 are drawn anew.
    for (let i = count - 16; i < count; i++) values[i] = uniform();
    pair(count - 16);
  }
  return values;
}

/** torch draws fewer than 16 numbers in pairs, of 53 random bits each. */
function fewNormals(source, count) {
  const uniform = () => {
    const high = source.next() & 0x1fffff;
    return (high * 2 ** 32 + source.next()) / 2 ** 53;
  };
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const angle = 2 * Math.PI * uniform();
    const radius = Math.sqrt(-2 * Math.log1p(-uniform()));
    values[i] = radius * Math.cos(angle);
    if (i + 1 < count) values[i + 1] = radius * Math.sin(angle);
  }
  return values;
}

/**
 * The latent of a picture's seed, as `TextToImage.draw` makes it.
 * @param {number} seed
 * @param {number} size
 * @returns {Float32Array}
 */
export function latent(seed, size) {
  return randn(mixSeed(seed, 0), size);
}

/**
 * On the great circle from a to b, the length going from the one's to the other's (Shoemake, 1985), as `slerp`
 * in imagen_pl/inference/interpolation.py.
 * @param {Float32Array} a
 * @param {Float32Array} b
 * @param {number} share 0 gives a, 1 gives b
 * @returns {Float32Array}
 */
export function slerp(a, b, share) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const lengths = [Math.sqrt(dot(a, a)), Math.sqrt(dot(b, b))];
  const angle = Math.acos(Math.min(1, Math.max(-1, dot(a, b) / (lengths[0] * lengths[1]))));
  const sine = Math.sin(angle);
  const straight = sine < 1e-4;
  const first = (straight ? 1 - share : Math.sin((1 - share) * angle) / sine) / lengths[0];
  const second = (straight ? share : Math.sin(share * angle) / sine) / lengths[1];
  const length = lengths[0] + (lengths[1] - lengths[0]) * share;
  return a.map((value, i) => (first * value + second * b[i]) * length);
}

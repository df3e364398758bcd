/** Files of the site, kept by the browser so that the page works offline after the first load. */

/** One store for each site, since several may share a host. The service worker uses the same name. */
export const STORE = `imagen-pl:${new URL(/* @vite-ignore */ '..', import.meta.url).pathname}`; // from assets/

/**
 * The content of a file, from the browser's store or the network, unpacked if it is gzip.
 * @param {{path: string, bytes: number, hash: string}} file as site.json describes it
 * @param {URL | string} base address of the site
 * @param {(bytes: number) => void} [onBytes] called as bytes arrive
 * @returns {Promise<Uint8Array>}
 */
export async function read(file, base, onBytes = () => {}) {
  const address = new URL(`${file.path}?${file.hash}`, base).href;
  const store = await openStore();
  let response = await store?.match(address);
  const stored = response !== undefined;
  response ??= await fetch(address);
  if (!response.ok) throw new Error(`${file.path} could not be loaded (${response.status})`);
  const parts = [];
  let size = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    size += part.value.length;
    onBytes(part.value.length);
  }
  const blob = new Blob(parts);
  if (!stored) {
    // Private windows and full disks refuse; the page works all the same, but not offline.
    await store?.put(address, new Response(blob)).catch(() => {});
  }
  const start = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  const isGzip = start[0] === 0x1f && start[1] === 0x8b; // some hosts unpack it on the way
  if (!isGzip) return new Uint8Array(await blob.arrayBuffer());
  const unpacked = blob.stream().pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

async function openStore() {
  try {
    return await caches.open(STORE);
  } catch {
    return undefined;
  }
}

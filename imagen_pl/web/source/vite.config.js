/**
 * Builds the page into imagen_pl/web/site, which the wheel contains: `make web`. A user needs no node.
 *
 * Besides the bundle it writes onnxruntime's WebAssembly as gzip (static hosts do not compress it), the
 * licences of the bundled packages, and a hash of these sources, by which a test sees that the bundle is theirs.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join, relative, sep } from 'node:path';
import { gzipSync } from 'node:zlib';

import { defineConfig } from 'vite';

const HERE = import.meta.dirname;
const SITE = join(HERE, '../site');
const PACKAGES = ['onnxruntime-web', '@huggingface/tokenizers', 'vtracer-wasm', 'gifenc', 'marked'];

export default defineConfig({
  root: HERE,
  base: './',
  build: { outDir: SITE, emptyOutDir: true, target: 'es2022', modulePreload: false, assetsInlineLimit: 0 },
  worker: { format: 'es', plugins: () => [withoutRuntime()] },
  plugins: [{ name: 'site', closeBundle: finish }],
});

/** The WebAssembly is given to onnxruntime by src/network.js: it is not to be emitted once more, unpacked. */
function withoutRuntime() {
  return {
    name: 'without-runtime',
    enforce: 'pre',
    transform: (code, id) =>
      id.includes('onnxruntime-web') ? code.replaceAll(/new URL\("[^"]*\.wasm",\s*import\.meta\.url\)/g, '""') : null,
  };
}

function finish() {
  const runtime = readFileSync(join(HERE, 'node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm'));
  mkdirSync(join(SITE, 'runtime'), { recursive: true });
  writeFileSync(join(SITE, 'runtime/ort.wasm.gz'), gzipSync(runtime, { level: 9 }));
  writeFileSync(join(SITE, 'THIRD_PARTY.txt'), `# Software in this page\n\n${PACKAGES.map(licence).join('\n\n')}\n`);
  writeFileSync(join(SITE, 'source.sha256'), `${sourceHash()}\n`);
}

function licence(name) {
  const folder = join(HERE, 'node_modules', name);
  const { version, license = 'MIT', homepage, repository } = JSON.parse(readFileSync(join(folder, 'package.json')));
  // What the package itself does not say is in licences/.
  const texts = [join(folder, 'LICENSE'), join(folder, 'LICENSE.md'), join(HERE, `licences/${name}.txt`)]
    .filter(existsSync)
    .map((file) => readFileSync(file, 'utf8').trim());
  const address = homepage ?? repository?.url?.replace(/^git\+/, '') ?? '';
  return `## ${name} ${version}\n\n${license}. ${address}\n\n\`\`\`\n${texts.join('\n\n')}\n\`\`\``;
}

/** SHA-256 of all source files in order of their paths: of each, path, a zero byte, content, a zero byte. */
function sourceHash() {
  const files = readdirSync(HERE, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(HERE, join(entry.parentPath, entry.name)).split(sep).join('/'))
    .filter((path) => !path.startsWith('node_modules/'))
    .sort();
  const hash = createHash('sha256');
  for (const path of files) hash.update(path).update('\0').update(readFileSync(join(HERE, path))).update('\0');
  return hash.digest('hex');
}

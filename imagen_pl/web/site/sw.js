/**
 * Keeps the site for use offline. The page's own files are fetched when this worker is installed; the model's
 * are put into the same store by the page (src/store.js) as it reads them. `imagen-pl export` writes the list.
 */
const LIST = {"own": [], "large": []};
const HOME = new URL('.', self.location).href;
const STORE = `imagen-pl:${new URL(HOME).pathname}`;

self.addEventListener('install', (event) => {
  const fetched = LIST.own.map(({ path }) => new Request(new URL(path, HOME), { cache: 'no-cache' }));
  event.waitUntil(caches.open(STORE).then((store) => store.addAll(fetched)));
});

// Files of earlier versions are of no more use.
self.addEventListener('activate', (event) => {
  event.waitUntil(
    (async () => {
      const paths = [...LIST.own.map(({ path }) => path), ...LIST.large];
      const known = new Set(paths.map((path) => new URL(path, HOME).href));
      const store = await caches.open(STORE);
      for (const request of await store.keys()) if (!known.has(request.url)) await store.delete(request);
      await self.clients.claim();
    })(),
  );
});

self.addEventListener('fetch', (event) => {
  const { request } = event;
  if (request.method !== 'GET' || !request.url.startsWith(HOME)) return;
  const address = request.mode === 'navigate' && [HOME, `${HOME}index.html`].includes(bare(request.url))
    ? `${HOME}index.html`
    : request.url;
  event.respondWith(
    caches
      .open(STORE)
      .then((store) => store.match(address))
      .then((kept) => kept ?? fetch(request)),
  );
});

function bare(address) {
  return address.replace(/[?#].*$/, '');
}

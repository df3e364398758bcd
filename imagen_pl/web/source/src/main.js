/** The page: reads the form, has the worker draw, and shows the pictures. */

import { showCard } from './card.js';
import { Engine } from './engine.js';
import { Gallery, element } from './gallery.js';
import { InputError, readForm } from './input.js';
import { read } from './store.js';

const BASE = new URL('.', document.baseURI);
const byId = (id) => document.getElementById(id);
const form = byId('form');
const fields = form.elements;
const NUMBERS = { seeds: 8, styles: 2, words: 4 }; // pictures, until the reader says otherwise

const site = await (await fetch(new URL('site.json', BASE))).json();
const engine = new Engine();
const gallery = new Gallery(byId('results'), site, showError, changeWords);
let running = null;
let loaded = null;

describe();
restore();
showMode();
listen();
if (navigator.connection?.saveData) {
  say(`The model has not been loaded, since your browser saves data. Draw loads it: ${megabytes(size())}.`);
} else {
  await draw();
}

function describe() {
  document.title = `${site.name} in your browser`;
  byId('name').textContent = site.name;
  byId('software').textContent = site.software;
  const shape = `${site.width * site.factor} x ${site.height * site.factor} px`;
  const seen = site.images_seen ? `, trained on ${site.images_seen.toLocaleString('en')} images` : '';
  const refined = site.refines
    ? ' Pictures are drawn without refinement, like those of "imagen-pl sample --refine 0".'
    : '';
  byId('facts').textContent =
    `${site.name}: ${shape}${site.alpha ? ' with transparency' : ''}${seen}. ${megabytes(size())} were loaded to ` +
    `draw. The same prompt and seed give the same picture as in Python.${refined}`;
  byId('enlarge-option').hidden = site.factor === 1;
  fields.prompt.value = site.examples[0] ?? '';
  fields.styles.value = site.styles.join(', ');
  for (const text of site.examples) {
    const button = element('button', { type: 'button', textContent: text });
    button.addEventListener('click', () => {
      fields.prompt.value = text;
      draw();
    });
    byId('examples').append(button);
  }
}

function listen() {
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    draw();
  });
  for (const radio of fields.mode) radio.addEventListener('change', showMode);
  byId('dice').addEventListener('click', () => {
    fields.seed.value = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
    draw();
  });
  byId('stop').addEventListener('click', () => running && engine.cancel(running));
  byId('about').addEventListener('toggle', () => {
    if (!byId('card').hasChildNodes()) showCard(byId('card'), site.files.card, BASE).catch(showError);
  });
}

/** Shows the fields of the chosen mode. */
function showMode() {
  const mode = fields.mode.value;
  for (const part of document.querySelectorAll('[data-for]')) {
    part.hidden = !part.dataset.for.split(' ').includes(mode);
  }
  byId('other-label').textContent = mode === 'film' ? 'Film to' : 'Other prompt';
  byId('number-label').textContent = mode === 'seeds' ? 'Pictures' : 'Pictures of each';
  if (NUMBERS[mode] && Object.values(NUMBERS).includes(Number(fields.number.value))) fields.number.value = NUMBERS[mode];
  if (!fields.other.value) fields.other.value = site.examples[1] ?? '';
}

/** Goes to "Other words" with a picture's prompt and seed. */
function changeWords({ prompt, seed }) {
  Object.assign(fields.prompt, { value: prompt });
  fields.seed.value = seed;
  fields.mode.value = 'words';
  showMode();
  fields.number.value = 1;
  fields.other.focus();
  fields.other.select();
}

async function draw() {
  if (running) engine.cancel(running);
  let wanted;
  try {
    clearError();
    wanted = readForm(form);
  } catch (error) {
    showError(error);
    return;
  }
  remember();
  document.body.dataset.state = 'busy';
  try {
    loaded ??= load();
    await loaded;
    if (running) engine.cancel(running); // asked for while the model was loading
    await (wanted.mode === 'film' ? drawFilm(wanted) : drawPictures(wanted));
  } catch (error) {
    if (document.body.dataset.loaded !== 'true') loaded = null; // Draw tries again
    showError(error);
    finish(null);
  }
}

async function load() {
  const began = performance.now();
  say(`Loading the model, ${megabytes(size())}, once.`);
  const task = engine.run('load', { site, address: BASE.href }, (message) => progress(message.loaded, message.total));
  await task.finished;
  document.body.dataset.loaded = 'true';
  document.body.dataset.loadMs = Math.round(performance.now() - began);
  registerOffline();
}

async function drawPictures({ mode, groups }) {
  const pictures = groups.flatMap((group) => group.pictures);
  const enlarge = fields.enlarge.checked;
  gallery.expect(groups, mode !== 'seeds', enlarge);
  say(`Drawing ${count(pictures.length, 'picture')}.`);
  const began = performance.now();
  let parts = 0;
  const task = engine.run('draw', { pictures, enlarge }, (message) => {
    if (task.id !== running) return;
    if (parts === 0) document.body.dataset.firstMs ??= Math.round(performance.now());
    gallery.show(message.place, imageOf(message), message.finished);
    progress(++parts, pictures.length * (enlarge && site.factor > 1 ? 2 : 1));
  });
  await follow(task, began, count(pictures.length, 'picture'));
}

async function drawFilm({ keyframes, frames }) {
  const enlarge = fields.enlarge.checked;
  const [from, to] = keyframes;
  const description = `Film from ${from.prompt} to ${to.prompt} and back, seed ${from.seed}`;
  gallery.expectFilm(description, { prompt: `${from.prompt} to ${to.prompt}`, seed: from.seed }, enlarge);
  const film = gallery.film;
  const total = keyframes.length * frames;
  say(`Drawing ${count(total, 'frame')}.`);
  const began = performance.now();
  const task = engine.run('film', { keyframes, frames, enlarge }, (message) => {
    if (task.id !== running) return;
    film.add(imageOf(message));
    progress(film.frames.length, total);
  });
  if (await follow(task, began, count(total, 'frame'))) film.finish();
}

/** Waits for a task, and says how it ended; true if it drew everything. */
async function follow(task, began, what) {
  running = task.id;
  byId('stop').hidden = false;
  const complete = await task.finished;
  if (running !== task.id) return false; // another has taken its place
  const seconds = (performance.now() - began) / 1000;
  document.body.dataset.drawMs = Math.round(1000 * seconds);
  finish(complete ? `${what} in ${seconds.toFixed(1)} seconds.` : 'Stopped.');
  return complete;
}

function finish(message) {
  running = null;
  if (document.activeElement === byId('stop')) byId('draw').focus(); // a hidden button loses the focus
  byId('stop').hidden = true;
  byId('progress').hidden = true;
  document.body.dataset.state = 'done';
  say(message ?? '');
}

function imageOf({ pixels, width, height }) {
  return new ImageData(pixels, width, height);
}

function say(message) {
  byId('status').textContent = message;
}

function progress(value, max) {
  Object.assign(byId('progress'), { value, max, hidden: false });
}

function clearError() {
  byId('error').hidden = true;
  for (const field of form.querySelectorAll('[aria-invalid]')) {
    field.removeAttribute('aria-invalid');
    field.removeAttribute('aria-describedby');
  }
}

function showError(error) {
  const box = byId('error');
  box.textContent = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
  box.hidden = false;
  if (!(error instanceof InputError)) return;
  error.field.setAttribute('aria-invalid', 'true');
  error.field.setAttribute('aria-describedby', 'error');
  error.field.focus();
}

/** The address names what is drawn, so that it can be sent to others. */
function remember() {
  const named = ['prompt', 'seed', 'mode'];
  if (fields.mode.value === 'styles') named.push('styles');
  if (['words', 'film'].includes(fields.mode.value)) named.push('other');
  const facts = new URLSearchParams(named.map((name) => [name, fields[name].value]));
  history.replaceState(null, '', `#${facts}`);
}

function restore() {
  const facts = new URLSearchParams(location.hash.slice(1));
  for (const name of ['prompt', 'seed', 'styles', 'other']) {
    if (facts.has(name)) fields[name].value = facts.get(name);
  }
  const radio = [...fields.mode].find(({ value }) => value === facts.get('mode'));
  if (radio) radio.checked = true;
}

async function registerOffline() {
  if (!('serviceWorker' in navigator)) return;
  try {
    await navigator.serviceWorker.register(new URL('sw.js', BASE));
    await navigator.serviceWorker.ready;
    await read(site.files.card, BASE); // the rest is there already
    byId('offline').textContent = 'This page now works without a network, too.';
    document.body.dataset.offline = 'true';
  } catch {
    byId('offline').textContent = 'This browser does not keep the page for use without a network.';
  }
}

/** Bytes that the first pictures need. */
function size() {
  const { runtime, text_encoder, generator, upscaler, tokenizer, tokenizer_config } = site.files;
  const networks = [text_encoder, generator, upscaler].filter(Boolean).flatMap((each) => [each.graph, each.weights]);
  const files = [...Object.values(runtime), ...networks, tokenizer, tokenizer_config];
  return files.reduce((sum, file) => sum + file.bytes, 0);
}

function megabytes(bytes) {
  return `${Math.round(bytes / 1e6)} MB`;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}

/** The pictures on the page, with their downloads. */

import { gif } from './gif.js';
import { png } from './png.js';
import { svg } from './svg.js';

const FPS = 12;

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export class Gallery {
  /**
   * @param {HTMLElement} place
   * @param {object} site content of site.json
   * @param {(error: unknown) => void} onError
   * @param {(picture: {prompt: string, seed: number}) => void} onWords called to change a picture's words
   */
  constructor(place, site, onError, onWords) {
    Object.assign(this, { place, site, onError, onWords, figures: [], film: null });
  }

  clear() {
    this.film?.stop();
    this.film = null;
    this.figures = [];
    this.place.replaceChildren();
  }

  /** Empty frames for pictures; `titles` says whether each group has its prompt above it. */
  expect(groups, titles, enlarged) {
    this.clear();
    const factor = enlarged ? this.site.factor : 1;
    for (const { title, pictures } of groups) {
      if (titles) this.place.append(element('h2', { textContent: title }));
      for (const picture of pictures) {
        const figure = new Figure(this, picture, factor);
        this.figures.push(figure);
        this.place.append(figure.root);
      }
    }
  }

  show(place, image, finished) {
    this.figures[place].show(image, finished);
  }

  expectFilm(description, facts, enlarged) {
    this.clear();
    this.film = new Film(this, description, facts, enlarged ? this.site.factor : 1);
    this.place.append(this.film.root);
  }

  canvas(factor, description) {
    const { width, height, alpha } = this.site;
    const canvas = element('canvas', { width: width * factor, height: height * factor });
    canvas.className = ['picture', 'empty', alpha && 'transparent', width * factor < 160 && 'small']
      .filter(Boolean)
      .join(' ');
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', description);
    return canvas;
  }

  tool(text, label, work) {
    const button = element('button', { type: 'button', textContent: text });
    button.setAttribute('aria-label', label);
    button.addEventListener('click', async () => {
      try {
        await work();
      } catch (error) {
        this.onError(error);
      }
    });
    return button;
  }

  facts(more) {
    const { name, images_seen, software } = this.site;
    return { ...more, refine: 0, model: name, images_seen: images_seen ?? '', software };
  }
}

class Figure {
  constructor(gallery, { prompt, seed }, factor) {
    this.gallery = gallery;
    const facts = gallery.facts({ prompt, seed });
    const name = fileName(`${prompt} ${seed}`);
    this.canvas = gallery.canvas(factor, `${prompt}, seed ${seed}, not drawn yet`);
    this.label = `${prompt}, seed ${seed}`;
    this.tools = element(
      'div',
      { className: 'tools', hidden: true },
      gallery.tool('PNG', `Save seed ${seed} as PNG`, async () => save(await png(this.image, facts), `${name}.png`)),
      gallery.tool('SVG', `Save seed ${seed} as SVG`, async () => save(await svg(this.image, facts), `${name}.svg`)),
      gallery.tool('Words', `Other words for seed ${seed}`, () => gallery.onWords({ prompt, seed })),
    );
    this.root = element('figure', {}, this.canvas, element('figcaption', { textContent: `Seed ${seed}` }), this.tools);
  }

  show(image, finished) {
    paint(this.canvas, image);
    this.canvas.setAttribute('aria-label', this.label);
    if (!finished) return;
    this.image = image;
    this.tools.hidden = false;
  }
}

class Film {
  constructor(gallery, description, facts, factor) {
    this.frames = [];
    this.canvas = gallery.canvas(factor, description);
    this.play = gallery.tool('Pause', 'Pause the film', () => (this.timer ? this.stop() : this.start()));
    const name = fileName(`${facts.prompt} ${facts.seed}`);
    const file = () => save(gif(this.frames, FPS), `${name}.gif`);
    this.tools = element('div', { className: 'tools', hidden: true }, this.play, gallery.tool('GIF', 'Save as GIF', file));
    this.root = element(
      'figure',
      { className: 'film' },
      this.canvas,
      element('figcaption', { textContent: description }),
      this.tools,
    );
  }

  add(image) {
    this.frames.push(image);
    paint(this.canvas, image);
  }

  /** The frames are complete. Where less motion is wanted, the film waits for its button. */
  finish() {
    this.tools.hidden = false;
    if (matchMedia('(prefers-reduced-motion: reduce)').matches) this.stop();
    else this.start();
  }

  start() {
    let place = 0;
    const next = () => paint(this.canvas, this.frames[place++ % this.frames.length]);
    this.timer = setInterval(next, 1000 / FPS);
    this.name('Pause', 'Pause the film');
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.name('Play', 'Play the film');
  }

  name(text, label) {
    this.play.textContent = text;
    this.play.setAttribute('aria-label', label);
  }
}

/** Draws an image at the canvas's size; smaller ones are enlarged smoothly until their large one comes. */
function paint(canvas, image) {
  const context = canvas.getContext('2d');
  canvas.classList.remove('empty');
  if (image.width === canvas.width) {
    context.putImageData(image, 0, 0);
    return;
  }
  const small = element('canvas', { width: image.width, height: image.height });
  small.getContext('2d').putImageData(image, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function fileName(text) {
  return text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-|-$/g, '').slice(0, 60) || 'picture';
}

function save(blob, name) {
  const link = element('a', { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

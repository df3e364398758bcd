/** The model card: Markdown, read when it is opened. Pictures and raw HTML in it are left out. */

import { Marked } from 'marked';

import { read } from './store.js';

const escape = (text) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

/**
 * @param {HTMLElement} place
 * @param {object} file as site.json describes it
 * @param {URL} base address of the site
 */
export async function showCard(place, file, base) {
  const bytes = await read(file, base);
  const text = new TextDecoder().decode(bytes).replace(/^---\n.*?\n---\n/s, '');
  const marked = new Marked({ renderer: { image: () => '', html: ({ text: raw }) => escape(raw) } });
  place.innerHTML = marked.parse(text);
}

/** Reads the form. Every error is one line that names the field and says how to mend it. */

export class InputError extends Error {
  /**
   * @param {HTMLInputElement} field that is wrong
   * @param {string} message
   */
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

const MAX_STYLES = 8;

/**
 * What is to be drawn.
 * @param {HTMLFormElement} form
 * @returns {{mode: string, groups: {title: string, pictures: {prompt: string, seed: number}[]}[],
 *   keyframes: {prompt: string, seed: number}[], frames: number}}
 */
export function readForm(form) {
  const fields = form.elements;
  const mode = fields.mode.value;
  const prompt = words(fields.prompt, 'the prompt', 'write what to draw, for example "red heart"');
  const seed = whole(fields.seed, 'the seed');
  if (mode === 'film') {
    const other = words(fields.other, 'the last prompt', 'write where the film goes');
    const frames = whole(fields.frames, 'the number of frames');
    return { mode, groups: [], frames, keyframes: [prompt, other].map((each) => ({ prompt: each, seed })) };
  }
  const number = whole(fields.number, 'the number of pictures');
  const seeds = Array.from({ length: number }, (_, k) => seed + k);
  let prompts = [prompt];
  if (mode === 'words') prompts = [prompt, words(fields.other, 'the other prompt', 'write the changed words')];
  if (mode === 'styles') prompts = styles(fields.styles).map((style) => `${prompt}, ${style}`);
  const groups = prompts.map((each) => ({
    title: each,
    pictures: seeds.map((own) => ({ prompt: each, seed: own })),
  }));
  return { mode, groups, keyframes: [], frames: 0 };
}

function words(field, what, hint) {
  const text = field.value.trim().replace(/\s+/g, ' ');
  if (!text) throw new InputError(field, `${what} is empty: ${hint}`);
  return text;
}

function whole(field, what) {
  const value = Number(field.value);
  const [least, most] = [Number(field.min), Number(field.max)];
  if (field.value.trim() === '' || !Number.isInteger(value) || value < least || value > most) {
    throw new InputError(field, `${what} must be a whole number from ${least} to ${most}`);
  }
  return value;
}

function styles(field) {
  const listed = field.value.split(',').map((style) => style.trim()).filter(Boolean);
  if (!listed.length) throw new InputError(field, 'no style is named: write one or more, with commas between them');
  if (listed.length > MAX_STYLES) throw new InputError(field, `these are ${listed.length} styles: use ${MAX_STYLES} at most`);
  return listed;
}

/** The page's side of worker.js. */

export class Engine {
  constructor() {
    this.worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
    this.tasks = new Map();
    this.count = 0;
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = () => {
      for (const { reject } of this.tasks.values()) reject(new Error('this browser cannot run the model'));
      this.tasks.clear();
    };
  }

  /**
   * @param {string} task one of those in worker.js
   * @param {object} arguments_
   * @param {(message: object) => void} onMessage called for progress and pictures
   * @returns {{id: number, finished: Promise<boolean>}} finished: true, or false if it was cancelled
   */
  run(task, arguments_, onMessage) {
    const id = ++this.count;
    const finished = new Promise((resolve, reject) => this.tasks.set(id, { resolve, reject, onMessage }));
    this.worker.postMessage({ ...arguments_, task, id });
    return { id, finished };
  }

  cancel(id) {
    this.worker.postMessage({ task: 'cancel', of: id });
  }

  receive(message) {
    const task = this.tasks.get(message.id);
    if (!task) return;
    if (message.kind === 'done' || message.kind === 'error') this.tasks.delete(message.id);
    if (message.kind === 'done') task.resolve(!message.cancelled);
    else if (message.kind === 'error') task.reject(new Error(message.message));
    else task.onMessage(message);
  }
}

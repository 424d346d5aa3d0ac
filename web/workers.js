// Workers: made so that nothing can leave them, asked one thing at a time, in turns.

/** A worker of a module (URL). It starts from a blob: other workers would not be under the page's
 * Content-Security-Policy. */
export function workerOf(url) {
  const code = new Blob([`import ${JSON.stringify(String(url))}`], { type: 'text/javascript' })
  return new Worker(URL.createObjectURL(code), { type: 'module' })
}

/** Workers that take turns. */
export class Pool {
  /** workers: those that answer each message by one. */
  constructor(workers) { Object.assign(this, { all: workers, idle: [...workers], waiting: [] }) }

  /** What a worker answers to a message. Throws what it says went wrong. */
  async ask(message, transfer = []) {
    const worker = this.idle.pop() ?? await new Promise(ready => this.waiting.push(ready))
    try {
      return await answerOf(worker, message, transfer)
    } finally {
      const next = this.waiting.shift()
      next ? next(worker) : this.idle.push(worker)
    }
  }

  /** The results of work(item) for all items, in their order; begun are only as many as keep the workers busy. */
  async map(items, work) {
    const results = []
    let next = 0
    const lane = async () => {
      while (next < items.length) {
        const i = next++
        results[i] = await work(items[i]).catch(error => { next = items.length; throw error })
      }
    }
    const ends = await Promise.allSettled([...this.all, null].map(lane)) // one more has its message ready
    const failed = ends.find(end => end.status === 'rejected')
    if (failed) throw failed.reason
    return results
  }
}

/** The answer of a worker to a message. */
export function answerOf(worker, message, transfer = []) {
  return new Promise((done, fail) => {
    worker.onmessage = ({ data }) => data.error ? fail(new Error(data.error)) : done(data)
    worker.onerror = event => fail(new Error(event.message || 'a worker could not start'))
    worker.postMessage(message, transfer)
  })
}

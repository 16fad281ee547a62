// A pool that never holds more connections than it may, those on their way in and out included: the number in the URL is what an
// operator has budgeted for, so the server's `max_connections` must not meet it by surprise.
import { cancel } from './connect.mjs';

const GOODBYE = 2000; // ms that a closing connection gets to go in peace
const MOMENT = 20; // ms in which a statement that has failed is over on the server, too; one that runs on is cancelled

/** What `acquire` throws when nothing was free in time. */
export const EXHAUSTED = 'timeout exceeded when trying to connect';

export class Pool {
  #open;
  #max;
  #idleFor;
  #lifetime;
  #patience;
  #members = new Map(); // client -> {idle, bornAt, broken, timer, generation}
  #opening = 0;
  #closing = 0;
  #waiting = [];
  #generation = 0;
  #ended;

  /**
   * @param {() => Promise<object>} open makes a connected client
   * @param {{max: number, idle: number, lifetime: number, patience: number}} limits connections; ms, 0 is for ever
   */
  constructor(open, { max, idle, lifetime, patience }) {
    this.#open = open;
    this.#max = max;
    this.#idleFor = idle;
    this.#lifetime = lifetime;
    this.#patience = patience;
  }

  get open() {
    return this.#members.size;
  }

  get idle() {
    return [...this.#members.values()].filter((member) => member.idle).length;
  }

  get waiting() {
    return this.#waiting.length;
  }

  /** A connection for the caller alone, who gives it back with `release`. */
  acquire() {
    if (this.#ended) return Promise.reject(new Error('the connection pool is closed'));
    return new Promise((resolve, reject) => {
      const waiter = { resolve, reject };
      if (this.#patience) waiter.timer = setTimeout(() => this.#giveUp(waiter), this.#patience);
      this.#waiting.push(waiter);
      this.#pump();
    });
  }

  /** @param {boolean} [broken] it failed or is still busy: it is closed, and what it does on the server is cancelled */
  release(client, broken = false) {
    const member = this.#members.get(client);
    if (!member) return;
    if (broken || member.broken || this.#ended || member.generation !== this.#generation || this.#expired(member)) {
      this.#close(client);
      return;
    }
    this.#rest(client, member);
    this.#pump();
  }

  /** Use none of the connections of now again, e.g. because their server may not be written to any more. */
  retire() {
    this.#generation += 1;
    for (const [client, member] of this.#members) if (member.idle) this.#close(client);
  }

  /** Close all connections; those in use when they come back. */
  async end() {
    this.#ended ??= {};
    for (const waiter of this.#waiting.splice(0)) this.#settle(waiter).reject(new Error('the connection pool is closed'));
    for (const [client, member] of this.#members) if (member.idle) this.#close(client);
    if (this.#members.size + this.#opening + this.#closing === 0) return;
    await (this.#ended.promise ??= new Promise((resolve) => (this.#ended.resolve = resolve)));
  }

  #pump() {
    while (this.#waiting.length) {
      const client = this.#takeIdle();
      if (client) {
        this.#settle(this.#waiting.shift()).resolve(client);
      } else if (this.#opening < this.#waiting.length && this.#members.size + this.#opening + this.#closing < this.#max) {
        void this.#add();
      } else {
        return;
      }
    }
  }

  // The one used last: the others may grow old and go.
  #takeIdle() {
    let found;
    for (const [client, member] of this.#members) {
      if (!member.idle) continue;
      if (this.#expired(member)) this.#close(client);
      else if (!found || member.idle > this.#members.get(found).idle) found = client;
    }
    if (!found) return undefined;
    const member = this.#members.get(found);
    clearTimeout(member.timer);
    member.idle = 0;
    return found;
  }

  async #add() {
    this.#opening += 1;
    const generation = this.#generation;
    try {
      const client = await this.#open();
      const member = { idle: 0, bornAt: performance.now(), broken: false, generation };
      const lost = () => {
        member.broken = true;
        if (member.idle) this.#close(client);
      };
      client.on('error', lost);
      client.on('end', lost);
      this.#members.set(client, member);
      this.#opening -= 1;
      if (this.#ended || generation !== this.#generation) this.#close(client);
      else this.#rest(client, member);
    } catch (error) {
      this.#opening -= 1;
      // One failure for one who waits; for all of them when nobody else will come and serve them.
      const others = this.#members.size + this.#opening + this.#closing;
      for (const waiter of this.#waiting.splice(0, others ? 1 : this.#waiting.length)) this.#settle(waiter).reject(error);
    }
    this.#pump();
    this.#finish();
  }

  #rest(client, member) {
    member.idle = performance.now();
    const left = this.#lifetime ? Math.max(0, member.bornAt + this.#lifetime - member.idle) : Infinity;
    const most = Math.min(this.#idleFor || Infinity, left);
    if (most < Infinity) member.timer = setTimeout(() => this.#close(client), most).unref();
  }

  #expired = (member) => this.#lifetime > 0 && performance.now() - member.bornAt > this.#lifetime;

  #close(client) {
    const member = this.#members.get(client);
    if (!member) return;
    clearTimeout(member.timer);
    this.#members.delete(client);
    this.#closing += 1;
    void goodbye(client, member.broken).finally(() => {
      this.#closing -= 1;
      this.#pump();
      this.#finish();
    });
  }

  #finish() {
    if (this.#ended?.resolve && this.#members.size + this.#opening + this.#closing === 0) this.#ended.resolve();
  }

  #settle(waiter) {
    clearTimeout(waiter.timer);
    return waiter;
  }

  #giveUp(waiter) {
    this.#waiting = this.#waiting.filter((other) => other !== waiter);
    const unreachable = this.#members.size + this.#closing === 0; // nothing is in use: no host has answered yet
    const error = new Error(unreachable ? 'no host answered in time' : EXHAUSTED);
    waiter.reject(Object.assign(error, unreachable && { whileConnecting: true }));
  }
}

// The server has let go of it when this ends, or does not answer.
async function goodbye(client, lost) {
  const timer = setTimeout(() => client.connection.stream.destroy(), GOODBYE);
  try {
    if (!lost && !client.readyForQuery) {
      const done = new Promise((resolve) => client.once('drain', resolve).once('end', resolve));
      const asked = setTimeout(() => cancel(client), MOMENT);
      await done;
      clearTimeout(asked);
    }
    await client.end();
  } catch {
    client.connection.stream.destroy();
  } finally {
    clearTimeout(timer);
  }
}

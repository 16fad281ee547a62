// Between the clients and the engine's process. The engine may die (for memory, of a panic, by a signal); the clients must then hear
// what is true of each of their requests, for LiteLLM writes spend again, or not, by what it hears. So the connections are kept here,
// in a process that does little and holds little, and this is what is known when the engine has died:
// - a read may be done again, on the next engine: the client notices nothing;
// - an open transaction is undone: "please retry your transaction" (P2034), whatever is asked of it;
// - a COMMIT has one outcome. The engine told the transaction's id before it sent it; the next engine looks it up;
// - of a write by itself nobody knows: the connection to the client is broken.
import { fork } from 'node:child_process';
import { setTimeout as pause } from 'node:timers/promises';
import { log } from './log.mjs';
import { prismaError, retryable } from './shapes.mjs';

/** The answer that is none: what was asked may have happened. */
export const UNKNOWN = Symbol('unknown');

const CORE = new URL('./core.mjs', import.meta.url);
const ENDING = /^\/transaction\/([^/]+)\/(commit|rollback)$/;
const [FIRST, MOST, STEADY] = [50, 5000, 30_000]; // ms before a restart, at most (doubling), and after which an engine was fine
const WAIT = 5000; // ms that a request waits for an engine
const POLL = 10; // ms
const STARTS = 10; // engines that a transaction may wait for
const REMEMBERED = 120_000; // ms for which undone transactions are known
const DIED = 'the query engine died and is being replaced';
const UNREACHABLE = prismaError('P1001', `Can't reach database server: ${DIED}`); // LiteLLM knows an outage by these words
const AWAY = { status: 200, body: JSON.stringify({ errors: [UNREACHABLE] }) };

export class Relay {
  #settings;
  #child;
  #takes = false;
  #asked = new Map(); // number -> {request, resolve}
  #number = 0;
  #open = new Map(); // transaction -> client
  #undone = new Set(); // transactions of engines that died
  #committing = new Map(); // transaction -> what looks its outcome up
  #delay = FIRST;
  #stopping = false;

  /** @param settings for core.mjs */
  constructor(settings) {
    this.#settings = settings;
  }

  /** Start the engine; resolves when it takes requests, with what it says of itself; rejects when the first one does not start. */
  start() {
    return this.#spawn();
  }

  /**
   * @param {{method: string, url: string, body: string, id?: string}} request
   * @param {{isHere: () => boolean}} client
   * @returns {Promise<{status: number, body: string, type?: string} | typeof UNKNOWN>}
   */
  async ask(request, client, tries = 0) {
    const [, ending, what] = ENDING.exec(request.url) ?? [];
    const transaction = ending ?? request.id;
    if (this.#undone.has(transaction)) return what === 'rollback' ? done() : undone();
    // An engine that is not the one of a transaction must not hear of it.
    const answer = transaction === undefined || this.#takes ? await this.#send(request) : undefined;
    if (what) this.#open.delete(transaction);
    const own = this.#committing.get(transaction);
    this.#committing.delete(transaction);
    if (answer === undefined && transaction !== undefined) {
      this.#remember(transaction);
      if (what === 'rollback') return done();
      return what === 'commit' && own ? this.#settle(own) : undone();
    }
    if (answer === undefined) return this.#again(request, client, tries + 1);
    if (request.url === '/transaction/start') return answer === AWAY ? undone() : this.#started(answer, client);
    return answer.unsettled ? UNKNOWN : answer;
  }

  /** Roll back what clients that are gone have left open: it would hold its locks until it expires. */
  forsake() {
    for (const [id, client] of this.#open) if (!client.isHere()) void this.#rollback(id);
  }

  /** Have the engine wait for the database no more. */
  stop() {
    this.#stopping = true;
    if (this.#child?.connected) this.#child.send({ stop: true });
  }

  /** End the engine; requests must have been answered. */
  async close() {
    const child = this.#child;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.disconnect();
    await gone;
  }

  async #started(answer, client) {
    const { id } = answer.status === 200 ? JSON.parse(answer.body) : {};
    if (id === undefined) return answer;
    this.#open.set(id, client);
    if (client.isHere()) return answer;
    await this.#rollback(id);
    return undone();
  }

  async #rollback(id) {
    this.#open.delete(id);
    await this.#send({ method: 'POST', url: `/transaction/${encodeURIComponent(id)}/rollback`, body: '' });
  }

  // The engine died over something outside of transactions. A read may be what killed it: it gets one more engine and no third.
  #again(request, client, tries) {
    const starts = request.url === '/transaction/start';
    if (!starts && request.method !== 'GET' && !isRead(request.body)) return UNKNOWN;
    return tries <= (starts ? STARTS : 1) && client.isHere() && !this.#stopping ? this.ask(request, client, tries) : AWAY;
  }

  async #settle(own) {
    for (;;) {
      const answer = await this.#send({ settle: own });
      if (answer?.status === 'committed') return done();
      if (answer?.status === 'aborted') return undone();
      if (answer?.status === 'unknown' || this.#stopping) return UNKNOWN;
    }
  }

  // The engine's answer; undefined when it died first.
  async #send(request) {
    if (!this.#takes && !(await this.#soon())) return request.settle ? undefined : AWAY;
    const child = this.#child;
    return new Promise((resolve) => {
      this.#number += 1;
      const number = this.#number;
      this.#asked.set(number, resolve);
      child.send({ number, request }, (error) => {
        if (!error) return;
        // It is dead, and its `exit` is still to come: who asked again now would ask the same engine, and use up its other try.
        if (child === this.#child) this.#takes = false;
        child.kill('SIGKILL'); // `exit` comes for certain
        this.#answered(number, undefined);
      });
    });
  }

  async #soon() {
    for (const late = performance.now() + WAIT; !this.#takes && performance.now() < late; ) await pause(POLL);
    return this.#takes;
  }

  #answered(number, answer) {
    this.#asked.get(number)?.(answer);
    this.#asked.delete(number);
  }

  #spawn() {
    const child = fork(CORE, [process.argv[2]], { serialization: 'advanced', stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    const born = performance.now();
    this.#child = child;
    return new Promise((resolve, reject) => {
      child.on('message', (message) => {
        if (message.ready) {
          this.#takes = true;
          resolve(message.ready);
        } else if (message.committing) this.#committing.set(message.committing, message.own);
        else this.#answered(message.number, message.answer);
      });
      child.on('error', () => {}); // a message that could not be sent; `exit` follows
      child.once('exit', () => (this.#takes = false));
      child.once('close', (code, signal) => {
        reject(new Error(`the query engine ended with ${signal ?? `exit code ${code}`}`));
        if (!this.#stopping) this.#died(performance.now() - born, signal ?? `exit code ${code}`);
        for (const number of [...this.#asked.keys()]) this.#answered(number, undefined);
      });
      child.send({ settings: this.#settings }, () => {});
    });
  }

  #died(age, how) {
    for (const id of this.#open.keys()) this.#remember(id);
    this.#open.clear();
    this.#delay = age > STEADY ? FIRST : Math.min(this.#delay * 2, MOST);
    log('error', DIED, { how, reason: `in ${this.#delay} ms` });
    const next = pause(this.#delay).then(() => this.#spawn());
    next.then(
      ({ pid }) => log('replaced', 'another query engine is ready', { pid, reason: how }),
      () => {},
    );
  }

  #remember(id) {
    this.#undone.add(id);
    setTimeout(() => this.#undone.delete(id), REMEMBERED).unref();
  }
}

const isRead = (body) => /"query"\s*:\s*"(\s|\\n)*query\b/.test(body) && !/"query"\s*:\s*"(\s|\\n)*mutation\b/.test(body);
const done = () => ({ status: 200, body: '{}' });

function undone() {
  const { user_facing_error: error } = prismaError('P1017', DIED);
  return { status: 200, body: JSON.stringify({ errors: [{ error: DIED, user_facing_error: retryable(error) }] }) };
}

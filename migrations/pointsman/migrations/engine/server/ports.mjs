// The ports to listen on: each client starts a "query engine" of its own, which is only a joiner (../joiner.*). It registers
// the port that its client expects as a file `<port>` holding "<joiner's pid> <client's pid>", and sleeps. Here we listen on each
// registered port for as long as the joiner lives, and after a restart again.
import { createServer } from 'node:http';
import { readdirSync, readFileSync, rmSync, watch } from 'node:fs';
import { join } from 'node:path';
import { log } from './log.mjs';

const SCAN_INTERVAL = 1000; // ms; new ports are noticed at once by the watch, this finds joiners that died
const LOOPBACK = '127.0.0.1';
const NAME = /^[1-9]\d{0,4}$/;

/** Listens on the ports registered in a directory. */
export class Ports {
  #directory;
  #listener;
  #onClosed;
  #servers = new Map();
  #watcher;
  #timer;

  /** @param {() => void} onClosed called after ports whose clients are gone were closed */
  constructor(directory, listener, onClosed) {
    this.#directory = directory;
    this.#listener = listener;
    this.#onClosed = onClosed;
  }

  open() {
    this.#watcher = watch(this.#directory, () => this.#scan());
    this.#timer = setInterval(() => this.#scan(), SCAN_INTERVAL);
    this.#scan();
  }

  /** Stop accepting; resolves when requests in flight are answered. */
  async close() {
    this.#watcher?.close();
    clearInterval(this.#timer);
    await Promise.all([...this.#servers.values()].map(stop));
    this.#servers.clear();
  }

  #scan() {
    const registered = new Set(readdirSync(this.#directory).filter((name) => NAME.test(name)));
    for (const [port, server] of this.#servers) {
      if (registered.has(port) && this.#isJoined(port)) continue;
      this.#servers.delete(port);
      void stop(server);
      this.#onClosed();
      log('debug', 'port closed', { port: Number(port) });
    }
    for (const port of registered) {
      if (!this.#servers.has(port) && this.#isJoined(port)) this.#listen(port);
    }
  }

  #listen(port) {
    const server = createServer({ keepAliveTimeout: 120_000, requestTimeout: 0 }, this.#listener);
    // A connection that was busy when the server was closed would be kept alive after its answer.
    server.on('request', ({ socket }, response) => response.once('finish', () => server.listening || socket.destroySoon()));
    this.#servers.set(port, server);
    server.on('error', (error) => {
      log('warning', 'a port cannot be opened; trying again', { port: Number(port), reason: error.message });
      this.#servers.delete(port);
    });
    server.listen(Number(port), LOOPBACK, () => log('debug', 'port opened', { port: Number(port) }));
  }

  // A joiner whose client is gone is ended here, in case the kernel was not asked to (see the joiner's fallback).
  #isJoined(port) {
    const file = join(this.#directory, port);
    let pid;
    let client;
    try {
      [pid, client] = readFileSync(file, 'utf8').trim().split(' ').map(Number);
    } catch {
      return false;
    }
    const parent = parentOf(pid);
    if (parent === client) return true;
    if (parent !== undefined) end(pid);
    rmSync(file, { force: true });
    return false;
  }
}

// Parent of a live process; undefined when there is none (or only its zombie). Field 3 is the state, 4 the parent: proc(5).
function parentOf(pid) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const [state, parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return state === 'Z' || state === 'X' ? undefined : Number(parent);
  } catch {
    return undefined;
  }
}

function end(pid) {
  try {
    process.kill(pid, 'SIGTERM');
  } catch {
    // it went by itself
  }
}

function stop(server) {
  return new Promise((resolve) => {
    if (!server.listening) resolve();
    else server.close(resolve);
    server.closeIdleConnections();
  });
}

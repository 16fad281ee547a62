// Prisma's query engine, compiled to WASM, as the HTTP server that prisma-client-py expects of a native one. This process keeps the
// clients' connections; the engine runs in a process of its own (core.mjs), which may die and is replaced (relay.mjs).
//
//   node main.mjs <directory that holds node_modules>
//
// The first line of stdin is JSON: {databaseUrl, schema, ports, patience}: the URL (not on the command line, where others could read
// the password), the path of the schema file, the directory of registered ports, and how long (ms) spend waits for the database.
// stdin stays open as long as the parent lives; when it ends, so does the server. stdout carries JSON lines: {"level": "ready"}
// once, else logs.
import { createInterface } from 'node:readline';
import { listener } from './http.mjs';
import { log } from './log.mjs';
import { Ports } from './ports.mjs';
import { Relay } from './relay.mjs';

const GRACE = 5000; // ms that requests in flight get when asked to stop
const BROKEN = 70; // EX_SOFTWARE
let ports;
let relay;
let stopping = false;

function fail(error) {
  log('critical', 'the query engine failed and will be restarted', { reason: error.stack ?? String(error) });
  process.exit(BROKEN);
}

async function stop() {
  if (stopping) return;
  stopping = true;
  setTimeout(() => process.exit(0), GRACE).unref();
  relay?.stop();
  await ports?.close();
  await relay?.close();
  process.exit(0);
}

async function start(line) {
  const { ports: directory, ...settings } = JSON.parse(line);
  relay = new Relay(settings);
  const ready = await relay.start().catch(() => process.exit(1)); // it has said why
  ports = new Ports(directory, listener(relay), () => relay.forsake());
  ports.open();
  log('ready', 'query engine ready', ready);
}

process.on('uncaughtException', fail);
process.on('unhandledRejection', fail);
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => void stop());

const input = createInterface({ input: process.stdin });
input.once('line', (line) => void start(line));
// End of input: the parent is gone.
input.once('close', () => void stop());

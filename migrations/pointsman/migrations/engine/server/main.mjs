// Prisma's query engine, compiled to WASM, as the HTTP server that prisma-client-py expects of a native one.
//
//   node main.mjs <directory that holds node_modules>
//
// The first line of stdin is JSON: {databaseUrl, schema, ports, patience}: the URL (not on the command line, where others could read
// the password), the path of the schema file, the directory of registered ports, and how long (ms) spend waits for the database. stdin stays open as long as the parent lives; when
// it ends, so does the server. stdout carries JSON lines: {"level": "ready"} once, else logs.
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { Database } from './database.mjs';
import { Engine } from './engine.mjs';
import { listener } from './http.mjs';
import { log } from './log.mjs';
import { Ports } from './ports.mjs';
import { parseSchema } from './schema.mjs';
import { Translator } from './translate.mjs';
import { parseUrl } from './url.mjs';

const GRACE = 5000; // ms that requests in flight get when asked to stop
const PANIC = 70; // EX_SOFTWARE
let ports;
let stopping = false;

function fail(error) {
  log('critical', 'the query engine failed and will be restarted', { reason: error.stack ?? String(error) });
  process.exit(PANIC);
}

async function stop({ database, engine }) {
  if (stopping) return;
  stopping = true;
  setTimeout(() => process.exit(0), GRACE).unref();
  engine.stop();
  await ports?.close();
  await database.close();
  process.exit(0);
}

async function start(line) {
  const { databaseUrl, schema, ports: directory, patience } = JSON.parse(line);
  const options = { ...parseUrl(databaseUrl), patience };
  const text = readFileSync(schema, 'utf8');
  const database = new Database(options);
  const engine = new Engine(text, database, options);
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => void stop({ database, engine }));
  await engine.connect();
  const answers = listener(engine, new Translator(parseSchema(text)), database, fail);
  ports = new Ports(directory, answers, () => void engine.forsake().catch(fail));
  ports.open();
  log('ready', 'query engine ready', { database: options.where, connections: options.pool.max });
  return { database, engine };
}

process.on('uncaughtException', fail);
process.on('unhandledRejection', fail);

const input = createInterface({ input: process.stdin });
let started;
input.once('line', (line) => {
  started = start(line).catch((error) => {
    log('critical', 'the query engine cannot start', { reason: error.message });
    process.exit(1);
  });
});
// End of input: the parent is gone.
input.once('close', async () => (started ? stop(await started) : process.exit(0)));

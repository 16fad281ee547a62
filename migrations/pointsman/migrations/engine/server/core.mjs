// The engine's process, which relay.mjs starts, asks, and replaces when it dies. It ends when its parent does.
import { readFileSync } from 'node:fs';
import { answerer } from './answers.mjs';
import { Database } from './database.mjs';
import { Engine } from './engine.mjs';
import { log } from './log.mjs';
import { parseSchema } from './schema.mjs';
import { Translator } from './translate.mjs';
import { parseUrl } from './url.mjs';

const PANIC = 70; // EX_SOFTWARE
const GOODBYE = 2000; // ms that the connections get to close
let started;

function fail(error) {
  log('critical', 'the query engine failed and will be replaced', { reason: error.stack ?? String(error) });
  process.exit(PANIC);
}

// Resolves when the message is out of this process, and will arrive whatever becomes of it.
const tell = (message) => new Promise((resolve) => process.send(message, resolve));

async function start({ databaseUrl, schema, patience }) {
  const options = { ...parseUrl(databaseUrl), patience };
  const text = readFileSync(schema, 'utf8');
  const database = new Database(options);
  database.onCommit = (committing, own) => committing !== undefined && tell({ committing, own });
  const engine = new Engine(text, database, options);
  await engine.connect();
  const answer = answerer(engine, new Translator(parseSchema(text)), database, fail);
  await tell({ ready: { pid: process.pid, database: options.where, connections: options.pool.max } });
  return { answer, database, engine };
}

async function take({ settings, number, request, stop }) {
  if (settings) {
    started = start(settings).catch((error) => {
      log('critical', 'the query engine cannot start', { reason: error.message });
      process.exit(1);
    });
    return;
  }
  const { answer, database, engine } = await started;
  if (stop) engine.stop();
  else if (request.settle) await tell({ number, answer: { status: await database.settle(request.settle) } });
  else await tell({ number, answer: await answer(request) });
}

process.on('uncaughtException', fail);
process.on('unhandledRejection', fail);
// Signals are for the parent, which lets requests finish first.
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => {});
process.on('message', (message) => void take(message).catch(fail));
process.on('disconnect', async () => {
  setTimeout(() => process.exit(0), GOODBYE).unref();
  await (await started)?.database.close();
  process.exit(0);
});

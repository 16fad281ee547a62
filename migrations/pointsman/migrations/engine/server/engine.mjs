// The WASM engine with its transactions: single queries, batches, interactive transactions.
import { setTimeout as pause } from 'node:timers/promises';
import { bindAdapter, loadQueryEngine } from './deps.mjs';
import { ErrorMapper } from './errors.mjs';
import { log } from './log.mjs';
import { reshape } from './results.mjs';
import { isAway, prismaError, retryable } from './shapes.mjs';

const TRACE = '{}';
const REMEMBERED = 1000; // closed transactions that a late call may still name
// LiteLLM writes spend in transactions that may last a minute, and forgets what it cannot write in four tries. So these wait for
// a database that is away; what a client of the gateway waits for is shorter, and fails at once.
const LONG = 60_000; // ms a transaction may last, to be one that waits
const ASK_AGAIN = 250; // ms
const BEGIN_LONGEST = 30_000; // ms; the connection is there already
const START = 'Transaction API error: Unable to start a transaction in the given time.';
const TOO_LATE = prismaError('P2028', START, { error: START }).user_facing_error;

/** The engine has panicked; its memory cannot be trusted any more, so the process must end. */
export class EnginePanic extends Error {}

/** Prisma's engine for one database and one schema. */
export class Engine {
  #wasm;
  #errors;
  #database;
  #patience;
  #open = new Set();
  #closed = new Set();
  #stopping = false;
  queries = 0;
  active = 0;

  constructor(schema, database, options) {
    const adapter = bindAdapter(database);
    this.#database = database;
    this.#patience = options.patience;
    this.#errors = new ErrorMapper(adapter.errorRegistry, options);
    const QueryEngine = loadQueryEngine();
    this.#wasm = new QueryEngine(
      {
        datamodel: schema,
        env: { DATABASE_URL: 'postgresql://by-adapter' }, // the schema wants one; the adapter is what connects
        datasourceOverrides: {},
        ignoreEnvVarErrors: true,
        logQueries: false,
        logLevel: 'error',
        configDir: '.',
        engineProtocol: 'json',
      },
      (line) => log('debug', 'engine', { line: String(line).slice(0, 2000) }),
      adapter,
    );
  }

  async connect() {
    await this.#wasm.connect(TRACE);
  }

  /**
   * @param request of the JSON protocol: one query, or `{batch, transaction}`
   * @param {string} [transaction] id of an interactive transaction
   * @returns {Promise<string>} the answer's JSON for prisma-client-py
   */
  async query(request, transaction) {
    if (transaction !== undefined && !this.#open.has(transaction)) {
      return JSON.stringify({ errors: [this.#notOpen(transaction, 'query')] });
    }
    this.queries += request.batch?.length ?? 1;
    this.active += 1;
    try {
      const answer = await guarded(() => this.#wasm.query(JSON.stringify(request), TRACE, transaction));
      const reshaped = reshape(answer, request.action);
      return reshaped.startsWith('{"errors":') ? this.#errors.answer(reshaped, transaction !== undefined) : reshaped;
    } finally {
      this.active -= 1;
    }
  }

  /** Times in milliseconds. Returns `{id}`, or Prisma's user-facing error. */
  async start({ max_wait: maxWait = 2000, timeout = 5000, isolation_level: isolation }) {
    const asked = JSON.stringify({ max_wait: BEGIN_LONGEST, timeout, isolation_level: isolation });
    const patient = timeout >= LONG;
    const until = performance.now() + this.#patience;
    for (;;) {
      const answer = await this.#begin(asked, patient, maxWait);
      if (answer.id !== undefined) {
        this.#open.add(answer.id);
        // The engine rolls it back by itself then; we only forget that it is open a little later.
        setTimeout(() => this.#forget(answer.id), timeout + 60_000).unref();
        return { id: answer.id };
      }
      if (!patient || !isAway(answer)) return answer;
      if (performance.now() > until || this.#stopping) return retryable(answer);
      await pause(ASK_AGAIN);
    }
  }

  /** Wait for the database no more: the server is about to stop. */
  stop() {
    this.#stopping = true;
  }

  // The connection is there before the engine asks for it: an engine that has lost patience would never give it back.
  async #begin(asked, patient, maxWait) {
    let connection;
    try {
      connection = await this.#reserve(patient, maxWait);
    } catch (error) {
      return this.#errors.name(error).user_facing_error;
    }
    if (connection === undefined) return { ...TOO_LATE };
    this.#database.hand(connection);
    try {
      const answer = JSON.parse(await guarded(() => this.#wasm.startTransaction(asked, TRACE)));
      if (answer.error_code !== undefined || answer.id === undefined) return this.#errors.userFacing(answer);
      this.#database.name(connection, answer.id);
      return answer;
    } finally {
      this.#database.take(connection);
    }
  }

  async #reserve(patient, maxWait) {
    const connection = this.#database.reserve(patient);
    if (patient) return connection;
    const late = new AbortController();
    const first = await Promise.race([connection, pause(maxWait, undefined, { signal: late.signal }).catch(() => undefined)]);
    late.abort();
    if (first === undefined) {
      connection.then(
        (unused) => this.#database.giveBack(unused),
        () => {},
      );
    }
    return first;
  }

  commit(id) {
    return this.#end(id, 'commit', () => this.#wasm.commitTransaction(id, TRACE));
  }

  rollback(id) {
    return this.#end(id, 'rollback', () => this.#wasm.rollbackTransaction(id, TRACE));
  }

  async #end(id, what, call) {
    // The engine panics on an id that it does not know; so it never hears of one.
    if (!this.#open.has(id)) return this.#notOpen(id, what).user_facing_error;
    this.#forget(id);
    const answer = JSON.parse((await guarded(call)) || '{}');
    return answer.error_code === undefined ? {} : retryable(this.#errors.userFacing(answer));
  }

  #forget(id) {
    if (!this.#open.delete(id)) return;
    this.#closed.add(id);
    if (this.#closed.size > REMEMBERED) this.#closed.delete(this.#closed.values().next().value);
  }

  #notOpen(id, what) {
    const reason = this.#closed.has(id)
      ? `Transaction already closed: A ${what} cannot be executed on a closed transaction.`
      : 'Transaction not found. Its id is wrong, or it was closed long ago or before the engine was restarted.';
    return { ...prismaError('P2028', `Transaction API error: ${reason}`, { error: reason }), error: reason };
  }
}

async function guarded(call) {
  try {
    return await call();
  } catch (error) {
    if (error instanceof WebAssembly.RuntimeError) throw new EnginePanic(error.message, { cause: error });
    throw error;
  }
}

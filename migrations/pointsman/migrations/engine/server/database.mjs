// Prisma's driver adapter over the `pg` pool: how the WASM engine reaches Postgres.
// Interface: DriverAdapter of @prisma/driver-adapter-utils 5.17. Unlike @prisma/adapter-pg this one knows all column types
// (types.mjs), keeps the session in UTC, speaks TLS "prefer", and never hands out a connection again that failed or is still busy.
import { err, ok, pg } from './deps.mjs';
import { log } from './log.mjs';
import { columnType, typeParsers } from './types.mjs';

const NO_TLS = 'The server does not support SSL connections';

/** What the pool and the engine's adapter are built from; see `parseUrl`. */
export class Database {
  provider = 'postgres';
  adapterName = 'pointsman-pg';
  #options;
  #pool;

  constructor(options) {
    this.#options = options;
    this.#pool = new pg.Pool({ ...options.client, ...options.pool, Client: clientClass(options) });
    // Without a listener, an idle connection that the server closes would end this process.
    this.#pool.on('error', (error) => log('debug', 'an idle connection was lost', { reason: error.message }));
    this.#pool.on('connect', (client) => client.on('error', () => {}));
  }

  /** Connections: open, idle, and queries waiting for one. */
  get load() {
    return { open: this.#pool.totalCount, idle: this.#pool.idleCount, waiting: this.#pool.waitingCount };
  }

  getConnectionInfo() {
    return ok({ schemaName: this.#options.schema });
  }

  async queryRaw(query) {
    return rows(await this.#once(query));
  }

  async executeRaw(query) {
    return affected(await this.#once(query));
  }

  async startTransaction() {
    const client = await this.#connect();
    return client.ok ? ok(new Transaction(client.value)) : client;
  }

  /** Close all connections; those in use when they come back. */
  async close() {
    await this.#pool.end();
  }

  async #once(query) {
    const client = await this.#connect();
    if (!client.ok) return client;
    try {
      const result = await run(client.value, query);
      client.value.release();
      return result;
    } catch (error) {
      client.value.release(true); // broken, or busy with a query that took too long
      throw error;
    }
  }

  async #connect() {
    try {
      return ok(await this.#pool.connect());
    } catch (error) {
      if (error.message === NO_TLS && this.#options.preferTls) {
        this.#pool.options.ssl = false;
        return this.#connect();
      }
      error.whileConnecting = true;
      throw error;
    }
  }
}

class Transaction {
  provider = 'postgres';
  adapterName = 'pointsman-pg';
  options = { usePhantomQuery: false }; // the engine sends BEGIN, COMMIT and ROLLBACK itself
  #client;
  #broken = false;
  #released = false;

  constructor(client) {
    this.#client = client;
  }

  async queryRaw(query) {
    return rows(await this.#run(query));
  }

  async executeRaw(query) {
    return affected(await this.#run(query));
  }

  async commit() {
    this.#release();
    return ok(undefined);
  }

  async rollback() {
    this.#release();
    return ok(undefined);
  }

  async #run(query) {
    try {
      return await run(this.#client, query);
    } catch (error) {
      this.#broken = true;
      throw error;
    }
  }

  // The engine calls commit or rollback in the end, also when the statement of that name failed.
  #release() {
    if (this.#released) return;
    this.#released = true;
    this.#client.release(this.#broken);
  }
}

// A failure that Postgres reports is a value the engine knows; anything else is thrown and ends up in the error registry.
async function run(client, query) {
  try {
    const values = query.args.map(argument);
    // `extended`, as the native engine does it: exactly one statement, also where there are no values.
    return ok(await client.query({ text: query.sql, values, rowMode: 'array', types: typeParsers, queryMode: 'extended' }));
  } catch (error) {
    if (typeof error.code === 'string' && typeof error.severity === 'string' && (!isGone(error.code) || isMiscount(error))) {
      const { code, severity, message, detail, column, hint } = error;
      return err({ kind: 'Postgres', code, severity, message, detail, column, hint });
    }
    throw error;
  }
}

/** SQLSTATEs that mean: this connection is over (class 08, and the shutdown codes of class 57). */
export const isGone = (code) => code.startsWith('08') || ['57P01', '57P02', '57P03', '57P05'].includes(code);

// Class 08 all the same: a statement with more or fewer values than it has parameters. (A pooler's 08P01 is FATAL.)
const isMiscount = (error) => error.code === '08P01' && error.severity === 'ERROR';

function argument(value) {
  if (ArrayBuffer.isView(value)) return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  return Array.isArray(value) ? value.map(argument) : value;
}

const rows = (result) =>
  result.map(({ fields, rows: values }) => ({
    columnNames: fields.map((field) => field.name),
    columnTypes: fields.map((field) => columnType(field.dataTypeID)),
    rows: values,
  }));

const affected = (result) => result.map(({ rowCount }) => rowCount ?? 0);

function clientClass(options) {
  return class extends pg.Client {
    constructor(config) {
      // The pool hides the password from enumeration, so a spread alone would lose it.
      const { password, ssl } = config;
      super({ ...config, password, ssl, connectionTimeoutMillis: options.client.connectionTimeoutMillis });
    }

    getStartupConf() {
      return { ...super.getStartupConf(), ...options.startup };
    }
  };
}

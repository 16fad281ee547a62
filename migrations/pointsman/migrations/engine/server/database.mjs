// Prisma's driver adapter over the `pg` pool: how the WASM engine reaches Postgres.
// Interface: DriverAdapter of @prisma/driver-adapter-utils 5.17. Unlike @prisma/adapter-pg this one knows all column types
// (types.mjs), keeps the session in UTC, finds the server that can be written to (connect.mjs), and never hands out a connection
// again that failed or is still busy (pool.mjs).
import { Connector } from './connect.mjs';
import { err, ok } from './deps.mjs';
import { Pool } from './pool.mjs';
import { watched } from './pulse.mjs';
import { Statements, send } from './statements.mjs';
import { Transaction, settle } from './transaction.mjs';
import { columnType, typeParsers } from './types.mjs';

export const READ_ONLY = '25006'; // read_only_sql_transaction: the server was demoted, or is a standby
const IS_READ_ONLY = "SELECT current_setting('transaction_read_only') = 'on' OR pg_is_in_recovery() AS answer";

/** What the pool and the engine's adapter are built from; see `parseUrl`. */
export class Database {
  provider = 'postgres';
  adapterName = 'pointsman-pg';
  #options;
  #pool;
  #reserved = [];
  #names = new WeakMap();
  /** Called before a COMMIT with the transaction's name (`name`) and what `settle` needs; the COMMIT waits for it. */
  onCommit;

  constructor(options) {
    this.#options = options;
    const connector = new Connector(options);
    const statements = new Statements(options.statements);
    this.#pool = new Pool(async () => statements.adopt(await connector.open()), { ...options.pool, patience: options.poolTimeout });
  }

  /** Connections: open, idle, and queries waiting for one. */
  get load() {
    return { open: this.#pool.open, idle: this.#pool.idle, waiting: this.#pool.waiting };
  }

  getConnectionInfo() {
    // Put between quotes as it is, so quotes in it are doubled here.
    return ok({ schemaName: this.#options.schema.replaceAll('"', '""') });
  }

  async queryRaw(query) {
    return rows(await this.#once(query));
  }

  async executeRaw(query) {
    return affected(await this.#once(query));
  }

  /** What the engine calls for a transaction; `reserve` has put a connection aside for those that clients start. */
  async startTransaction() {
    const client = this.#reserved.shift() ?? (await this.#pool.acquire());
    const announce = async (own, fate) => this.onCommit?.(this.#names.get(own), fate);
    return ok(new Transaction(this.#pool, client, this.#options.patience, announce));
  }

  /** Get a connection for the next `startTransaction`; at most one that is writable, if asked for. Throws as `acquire` does. */
  async reserve(writable = false) {
    const client = await this.#pool.acquire();
    try {
      if (writable && (await watched(client, () => client.query(IS_READ_ONLY))).rows[0].answer) {
        throw Object.assign(new Error('cannot execute a write in a read-only transaction'), { code: READ_ONLY, severity: 'ERROR' });
      }
    } catch (error) {
      this.#pool.release(client, true);
      throw error;
    }
    return client;
  }

  /** Have the next `startTransaction` use what `reserve` gave; `take` it back when that did not happen, or `giveBack` at once. */
  hand(client) {
    this.#reserved.push(client);
  }

  giveBack(client) {
    this.#pool.release(client);
  }

  take(client) {
    const at = this.#reserved.indexOf(client);
    if (at < 0) return;
    this.#reserved.splice(at, 1);
    this.#pool.release(client);
  }

  /** Give the transaction that was begun on a connection from `hand` its name. */
  name(client, transaction) {
    this.#names.set(client, transaction);
  }

  /** See `settle` of transaction.mjs. */
  settle(own) {
    return settle(this.#pool, own, this.#options.patience);
  }

  /** Close all connections; those in use when they come back. */
  async close() {
    await this.#pool.end();
  }

  async #once(query, again = true) {
    const client = await this.#pool.acquire();
    try {
      const result = await run(client, query, true);
      this.#pool.release(client);
      return result;
    } catch (error) {
      this.#pool.release(client, true); // broken, or busy with a query that took too long
      if (error.code !== READ_ONLY) throw error;
      this.#pool.retire();
      if (!again) throw error;
      return this.#once(query, false); // it was not carried out; the hosts are asked anew who may be written to
    }
  }
}

// A failure that Postgres reports is a value the engine knows; anything else is thrown and ends up in the error registry.
// `alone`: not inside a transaction.
export async function run(client, query, alone = false) {
  try {
    const values = query.args.map(argument);
    // `extended`, as the native engine does it: exactly one statement, also where there are no values.
    const asked = { text: query.sql, values, rowMode: 'array', types: typeParsers, queryMode: 'extended' };
    return ok(await watched(client, () => send(client, asked, alone)));
  } catch (error) {
    if (typeof error.code === 'string' && typeof error.severity === 'string' && (!isGone(error.code) || isMiscount(error))) {
      const { severity, detail, column, hint } = error;
      return err({ kind: 'Postgres', ...codeBefore18(error), severity, detail, column, hint });
    }
    throw error;
  }
}

/** SQLSTATEs that mean: this connection is over (class 08, the shutdown codes of class 57, a server that only reads). */
export const isGone = (code) => code.startsWith('08') || ['57P01', '57P02', '57P03', '57P05', READ_ONLY].includes(code);

// Class 08 all the same: a statement with more or fewer values than it has parameters. (A pooler's 08P01 is FATAL.)
const isMiscount = (error) => error.code === '08P01' && error.severity === 'ERROR';

// Postgres 18 has a code of its own for ON DELETE RESTRICT; the engine makes P2003 only of the one that older servers gave.
function codeBefore18({ code, message }) {
  if (code !== '23001') return { code, message };
  return { code: '23503', message: message.replace('violates RESTRICT setting of foreign key', 'violates foreign key') };
}

function argument(value) {
  if (ArrayBuffer.isView(value)) return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  return Array.isArray(value) ? value.map(argument) : value;
}

export const rows = (result) =>
  result.map(({ fields, rows: values }) => ({
    columnNames: fields.map((field) => field.name),
    columnTypes: fields.map((field) => columnType(field.dataTypeID)),
    rows: values,
  }));

export const affected = (result) => result.map(({ rowCount }) => rowCount ?? 0);

// One transaction on one connection. Its COMMIT has exactly one outcome: when the connection breaks while it is under way, nobody
// knows whether Postgres has done it, so the id of the transaction, asked for before, is looked up on another connection.
// https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT (pg_xact_status; PostgreSQL 13 and newer).
import { setTimeout as pause } from 'node:timers/promises';
import { READ_ONLY, affected, rows, run } from './database.mjs';
import { ok } from './deps.mjs';
import { log } from './log.mjs';
import { watched } from './pulse.mjs';

const OWN_ID = 'SELECT pg_current_xact_id_if_assigned()::text, pg_current_wal_insert_lsn()::text, clock_timestamp()::text';
const OUTCOME = 'SELECT pg_xact_status($1::text::xid8)';
// A server that crashed may have lost the end of its log, and gives the ids in it to others, who may commit. It has: recovery ends
// with a checkpoint, and that one stands before a place in the log that had been reached earlier.
const LOG_LOST = `SELECT checkpoint_lsn < $1::text::pg_lsn AND checkpoint_time > $2::text::timestamptz FROM pg_control_checkpoint()`;
// The server may not have noticed that its client is gone: an open transaction of that id is nobody's any more.
const END = 'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_xid::text::bigint = $1::text::bigint % 4294967296';
const NEVER_SEEN = '22023'; // "transaction ID is in the future": this server, promoted since, has never heard of it
const NOT_ALLOWED = '42501'; // reading the control file, by a server more strict than Postgres is by itself
const ASK_AGAIN = 250; // ms

export class Transaction {
  provider = 'postgres';
  adapterName = 'pointsman-pg';
  options = { usePhantomQuery: false }; // the engine sends BEGIN, COMMIT and ROLLBACK itself
  #pool;
  #client;
  #patience;
  #announce;
  #broken = false;
  #released = false;

  /**
   * @param {number} patience ms that the outcome of a COMMIT is looked for: the database may take that long to come back
   * @param {(client: object, own: object) => Promise<void>} announce told before each COMMIT what `settle` will need to look it up
   */
  constructor(pool, client, patience, announce) {
    this.#pool = pool;
    this.#client = client;
    this.#patience = patience;
    this.#announce = announce;
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
      return query.sql === 'COMMIT' ? await this.#commit(query) : await run(this.#client, query);
    } catch (error) {
      this.#broken = true;
      if (error.code === READ_ONLY) this.#pool.retire();
      throw error;
    }
  }

  async #commit(query) {
    const asked = await run(this.#client, { sql: OWN_ID, args: [] });
    const [id, place, time] = asked.ok ? asked.value.rows[0] : []; // refused: the transaction has failed, COMMIT will roll it back
    if (id) await this.#announce(this.#client, { id, place, time });
    try {
      return await run(this.#client, query);
    } catch (error) {
      this.#broken = true;
      if (!id) throw error; // it has written nothing
      const status = await settle(this.#pool, { id, place, time }, this.#patience);
      if (status === 'unknown') throw Object.assign(error, { unsettled: true }); // nobody may send the same again
      if (status === 'aborted') throw error;
      return ok({ fields: [], rows: [], rowCount: 0 });
    }
  }

  // The engine calls commit or rollback in the end, also when the statement of that name failed.
  #release() {
    if (this.#released) return;
    this.#released = true;
    this.#pool.release(this.#client, this.#broken);
  }
}

/**
 * What has become of a transaction whose COMMIT was sent.
 *
 * @param {{id: string, place: string, time: string}} own its id, and a place in the server's log and a time shortly before
 * @param {number} patience ms
 * @returns {Promise<'committed' | 'aborted' | 'unknown'>}
 */
export async function settle(pool, own, patience) {
  const until = performance.now() + patience;
  for (;;) {
    const status = await outcome(pool, own);
    if (status === 'committed' || status === 'aborted') {
      log('warning', 'a COMMIT was interrupted; its outcome was looked up', { status });
      return status;
    }
    if (status === 'forgotten' || performance.now() > until) {
      log('error', 'a COMMIT was interrupted; its outcome is unknown', { looked: status ?? 'no database' });
      return 'unknown';
    }
    await pause(ASK_AGAIN);
  }
}

// 'committed', 'aborted', 'in progress', 'forgotten', or undefined while the database cannot be asked.
async function outcome(pool, { id, place, time }) {
  let client;
  try {
    client = await pool.acquire();
    const status = await ask(client, OUTCOME, id);
    if (status === 'in progress') await client.query({ text: END, values: [id] });
    const lost = status === 'committed' && (await ask(client, LOG_LOST, place, time).catch(refused));
    pool.release(client);
    return lost ? 'aborted' : (status ?? 'forgotten');
  } catch (error) {
    if (client) pool.release(client, true);
    return error.code === NEVER_SEEN ? 'aborted' : undefined;
  }
}

async function ask(client, text, ...values) {
  return (await watched(client, () => client.query({ text, values, rowMode: 'array' }))).rows[0][0];
}

function refused(error) {
  if (error.code !== NOT_ALLOWED) throw error;
  return false;
}

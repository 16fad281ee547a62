// Prepared statements: what comes again is parsed and planned once a connection, as Prisma's native engine does it
// (`statement_cache_size`). Planning LiteLLM's look-up of a key costs Postgres several times what running it costs.
//
// A name must mean the same statement on whatever is at the other end. So a statement gets one only
// - at its third coming, because much of LiteLLM's SQL is unique (lists of values written into the text);
// - on a connection to Postgres itself: a pooler in between may lend the server's connection to others after each transaction. It is
//   told by the process id: a pooler makes up its own;
// - inside a transaction only where no rows come back: a failure there cannot be tried again.
// When a name fails all the same, nothing has been executed yet, so the statement is sent again without one.
import { createHash } from 'node:crypto';

const COMINGS = 3;
const REMEMBERED = 1000; // texts whose comings are counted
// Characters of a text worth a name: shorter ones (BEGIN) are not planned, longer ones are bulk writes, hardly two of them alike.
const [SHORTEST, LONGEST] = [20, 16_384];
const RETURNS_ROWS = /^\s*(select|with|values|table)\b|\breturning\b/i;
const STALE_PLAN = '0A000'; // "cached plan must not change result type": the table was altered
const UNKNOWN = '26000'; // no statement of that name, though we prepared it
const DUPLICATE = '42P05'; // a statement of that name, though we prepared none

const owners = new WeakMap(); // client -> Statements

/** Send `query` (of the driver, without a name), by name where that pays; `alone`: not inside a transaction. */
export const send = (client, query, alone) => owners.get(client)?.send(client, query, alone) ?? client.query(query);

/** The statements of one server, on all connections to it. */
export class Statements {
  #size;
  #seen = new Map(); // text -> comings, the least recently seen first
  #direct = new WeakMap(); // client -> whether Postgres itself is at the other end

  /** @param {number} size named statements a connection, 0 for none */
  constructor(size) {
    this.#size = size;
  }

  /** Have the statements of a connection looked after. Returns it. */
  adopt(client) {
    if (this.#size > 0) owners.set(client, this);
    return client;
  }

  /** See the function of this name. */
  async send(client, query, alone) {
    const name = this.#name(query.text);
    if (!name || !(await this.#mayName(client, query.text, alone))) return client.query(query);
    try {
      const result = await client.query({ ...query, name });
      if (alone && Object.keys(client.connection.parsedStatements).length > this.#size) await forget(client);
      return result;
    } catch (error) {
      if (error.code === UNKNOWN || error.code === DUPLICATE) this.#direct.set(client, false);
      else if (error.code !== STALE_PLAN) throw error;
      if (!alone) throw error;
      if (error.code === STALE_PLAN) await forget(client);
      return client.query(query);
    }
  }

  #name(text) {
    if (text.length < SHORTEST || text.length > LONGEST) return undefined;
    const seen = this.#seen.get(text) ?? { comings: 0 };
    this.#seen.delete(text);
    this.#seen.set(text, seen);
    if (this.#seen.size > REMEMBERED) this.#seen.delete(this.#seen.keys().next().value);
    seen.comings += 1;
    if (seen.comings < COMINGS) return undefined;
    seen.name ??= `pm_${createHash('sha256').update(text).digest('hex').slice(0, 32)}`;
    return seen.name;
  }

  async #mayName(client, text, alone) {
    if (!this.#direct.has(client)) {
      if (!alone) return false; // asked outside of a transaction, before long
      const { rows } = await client.query('SELECT pg_backend_pid() AS pid');
      this.#direct.set(client, Number(rows[0].pid) === client.processID);
    }
    return this.#direct.get(client) && (alone || !RETURNS_ROWS.test(text));
  }
}

// All of them: those in use are back after one planning each.
async function forget(client) {
  await client.query('DEALLOCATE ALL');
  const parsed = client.connection.parsedStatements;
  for (const name of Object.keys(parsed)) delete parsed[name];
}

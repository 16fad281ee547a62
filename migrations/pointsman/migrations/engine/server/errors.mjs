// Failures -> Prisma's error shape: {error, user_facing_error: {is_panic, message, meta, error_code}}.
// Codes: https://www.prisma.io/docs/orm/reference/error-reference . LiteLLM decides by them whether to answer 401, 503 or 400.
import { isGone } from './database.mjs';
import { prismaError, retryable } from './shapes.mjs';

const EXTERNAL = 'P2036'; // "Error in external connector (id N)": the driver threw
// LiteLLM looks for these words; without them it would tell its caller that the key is wrong (401), not the database away (503).
const UNAVAILABLE = 'Cannot connect to the database.';
const NETWORK = new Set([
  'ECONNREFUSED', 'ECONNRESET', 'ECONNABORTED', 'ENOTFOUND', 'EAI_AGAIN', 'ETIMEDOUT', 'EHOSTUNREACH', 'ENETUNREACH', 'EPIPE', 'ENOENT',
  'EACCES', 'EADDRNOTAVAIL', 'ENETDOWN', 'EHOSTDOWN',
]);
const BROKEN = /connection terminated|connection ended|not queryable|timeout expired|socket|before secure tls/i;

/** The outcome of a COMMIT could not be found out; the client must not hear anything that lets it send the same again. */
export class Unsettled extends Error {}

/** Finds the driver's own error behind what the engine reports, and names it as Prisma's native engine would. */
export class ErrorMapper {
  #registry;
  #options;

  /** @param registry of the bound adapter  @param options result of `parseUrl` */
  constructor(registry, options) {
    this.#registry = registry;
    this.#options = options;
  }

  /** The text of an answer `{"errors":[...]}`, mapped; `inTransaction`: an interactive one. */
  answer(text, inTransaction = false) {
    const errors = JSON.parse(text).errors.map((error) => {
      const known = error.user_facing_error ?? {};
      const mapped =
        known.error_code === EXTERNAL
          ? this.#external(known.meta?.id)
          : { ...error, user_facing_error: { ...known, meta: known.meta ?? {} } };
      return inTransaction ? { ...mapped, user_facing_error: retryable(mapped.user_facing_error) } : mapped;
    });
    return JSON.stringify({ errors });
  }

  /** A user-facing error as the transaction calls return it, mapped. */
  userFacing(error) {
    if (error.error_code === EXTERNAL) return this.#external(error.meta?.id).user_facing_error;
    return { ...error, meta: error.meta ?? {} };
  }

  #external(id) {
    const error = this.#registry.consumeError(id)?.error;
    delete this.#registry.registeredErrors[id]; // "consume" only reads; without this every failure would stay in memory
    return this.name(error ?? new Error('unknown'));
  }

  /** @param {Error} error what the driver threw */
  name(error) {
    if (error.unsettled) throw new Unsettled(error.message, { cause: error });
    return this.#name(error);
  }

  #name(error) {
    const { where, database, user, pool, poolTimeout } = this.#options;
    const code = typeof error.code === 'string' ? error.code : '';
    if (error.message === 'timeout exceeded when trying to connect') {
      return prismaError(
        'P2024',
        'Timed out fetching a new connection from the connection pool. More info: http://pris.ly/d/connection-pool ' +
          `(Current connection pool timeout: ${poolTimeout / 1000}, connection limit: ${pool.max})`,
        { connection_limit: pool.max, timeout: poolTimeout / 1000 },
      );
    }
    if (code === '28P01' || code === '28000') {
      const message =
        `Authentication failed against database server at \`${where}\`, ` +
        `the provided database credentials for \`${user}\` are not valid. ${UNAVAILABLE}`;
      return prismaError('P1000', message, { database_host: where, database_user: user ?? '' });
    }
    if (code === '3D000') {
      const message = `Database \`${database}\` does not exist on the database server at \`${where}\`. ${UNAVAILABLE}`;
      return prismaError('P1003', message, { database_name: database });
    }
    if (error.whileConnecting && code === '42501') {
      const message = `User \`${user}\` was denied access on the database \`${database}\`. ${UNAVAILABLE}`;
      return prismaError('P1010', message, { database_user: user ?? '', database_name: database });
    }
    if (error.message === 'Query read timeout') {
      return prismaError('P1008', `Operations timed out after ${this.#options.client.query_timeout / 1000} seconds`, {});
    }
    const causes = error.errors ?? [error]; // AggregateError: one a network address
    // By anybody but a server that is only full: that one LiteLLM knows by its own code.
    const refused = error.whileConnecting && !code.startsWith('53');
    if (refused || isGone(code) || BROKEN.test(error.message) || causes.some((cause) => NETWORK.has(cause.code))) {
      const [host, port] = splitAddress(where);
      return prismaError('P1001', `Can't reach database server at \`${where}\``, {
        database_host: host,
        database_port: port,
        reason: error.message || causes.map((cause) => cause.message).join('; '),
      });
    }
    // As the native engine prints what it has no code for; LiteLLM looks for the SQLSTATE in this text.
    const shown = code ? `PostgresError { code: "${code}", message: ${JSON.stringify(error.message)} }` : error.message;
    return { error: shown, user_facing_error: { is_panic: false, message: shown, meta: code ? { code, message: error.message } : {} } };
  }
}

function splitAddress(where) {
  const colon = where.lastIndexOf(':');
  return [where.slice(0, colon), Number(where.slice(colon + 1))];
}

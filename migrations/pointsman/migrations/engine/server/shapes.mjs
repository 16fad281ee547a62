// Errors as Prisma shapes them: {error, user_facing_error: {is_panic, message, meta, error_code}}.

/** One error in Prisma's shape. `meta` is always an object: the client trips over null. */
export function prismaError(code, message, meta = {}) {
  return { error: message, user_facing_error: { is_panic: false, message, meta, error_code: code } };
}

// What undoes a transaction without its doing: the database is away, full, out of memory or disk, or only reads.
const AWAY = new Set(['P1001', 'P1002', 'P1008', 'P1017', 'P2024']);
const AWAY_TEXT = /PostgresError \{ code: "(53|58|57P|25006)/;

/** Whether a user-facing error says that the database is away, and not that it has refused what was asked. */
export const isAway = (error) => AWAY.has(error.error_code) || AWAY_TEXT.test(error.message ?? '');

/**
 * A failure of an interactive transaction that is known to be undone, as "please retry your transaction" (P2034) where trying it
 * again makes sense. LiteLLM sends spend that it must not count twice again on that, and on few other failures.
 */
export function retryable(error) {
  if (!isAway(error)) return error;
  const message = `The transaction was rolled back and may be tried again: ${error.message}`;
  return { ...error, message, error_code: 'P2034' };
}

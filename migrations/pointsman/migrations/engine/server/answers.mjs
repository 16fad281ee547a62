// What a request of prisma-client-py's is answered with, in the protocol of a native engine (prisma-engines,
// query-engine/query-engine/src/server).
import { EnginePanic } from './engine.mjs';
import { Unsettled } from './errors.mjs';
import { log } from './log.mjs';
import { prismaError } from './shapes.mjs';
import { MalformedQuery } from './translate.mjs';

const TRANSACTION = /^\/transaction\/([^/]+)\/(commit|rollback)$/;

/**
 * Builds `({method, url, body, id}) => {status, body, type}`, or `{unsettled: true}` where nobody may know what has happened.
 * `fail` is called when the process must not go on.
 */
export function answerer(engine, translator, database, fail) {
  async function answer({ method, url, body, id }) {
    const path = url.split('?', 1)[0];
    if (method === 'GET' && path === '/metrics') return metrics(url, engine, database);
    if (method !== 'POST') return [404, '{"error":"no such endpoint"}'];
    if (path === '/') return [200, await query(JSON.parse(body), id)];
    if (path === '/transaction/start') return transaction(await engine.start(JSON.parse(body)));
    const ending = TRANSACTION.exec(path);
    if (!ending) return [404, '{"error":"no such endpoint"}'];
    return transaction(await engine[ending[2]](decodeURIComponent(ending[1])));
  }

  function query(body, id) {
    if (!Array.isArray(body.batch)) return engine.query(translator.translate(body.query), id);
    const batch = body.batch.map((item) => translator.translate(item.query));
    // Without a transaction of their own the queries of a batch commit one by one.
    return engine.query({ batch, ...(body.transaction && { transaction: {} }) }, id);
  }

  return async (request) => {
    try {
      const [status, body, type] = await answer(request);
      return { status, body, type };
    } catch (error) {
      if (error instanceof Unsettled) return { unsettled: true };
      if (error instanceof MalformedQuery || error instanceof SyntaxError) {
        const errors = [prismaError('P2009', `Failed to validate the query: ${error.message}`)];
        return { status: 200, body: JSON.stringify({ errors }) };
      }
      log('error', 'a query failed inside the engine', { reason: error.stack ?? String(error) });
      if (error instanceof EnginePanic) fail(error); // does not return: whoever waits is told what a dead engine means
      return { status: 500, body: JSON.stringify(prismaError('P2037', 'The query engine failed')) };
    }
  };
}

// "Please retry" comes as an error of a query does: that is where clients look for its code.
// The native server's statuses: gone 404, closed 422 (the body says so), anything else 500.
function transaction(result) {
  if (result.error_code === undefined) return [200, JSON.stringify(result)];
  if (result.error_code === 'P2034') return [200, JSON.stringify({ errors: [{ error: result.message, user_facing_error: result }] })];
  const said = String(result.meta?.error ?? '');
  if (result.error_code !== 'P2028') return [500, JSON.stringify(result)];
  if (said.startsWith('Transaction not found')) return [404, JSON.stringify(result)];
  return [said.startsWith('Transaction already closed') ? 422 : 504, JSON.stringify(result)];
}

// Names as Prisma's own: https://www.prisma.io/docs/orm/prisma-client/observability-and-logging/metrics
function metrics(url, engine, database) {
  const { open, idle, waiting } = database.load;
  const counters = [['prisma_client_queries_total', 'Total number of Prisma Client queries executed', engine.queries]];
  const gauges = [
    ['prisma_client_queries_active', 'Number of currently active Prisma Client queries', engine.active],
    ['prisma_client_queries_wait', 'Number of queries waiting for a database connection', waiting],
    ['prisma_pool_connections_open', 'Number of open connections', open],
    ['prisma_pool_connections_busy', 'Number of busy connections', open - idle],
    ['prisma_pool_connections_idle', 'Number of idle connections', idle],
  ];
  if (new URLSearchParams(url.split('?')[1]).get('format') === 'json') {
    const shape = ([key, description, value]) => ({ key, labels: {}, value, description });
    return [200, JSON.stringify({ counters: counters.map(shape), gauges: gauges.map(shape), histograms: [] })];
  }
  const lines = (type) => ([key, description, value]) => `# HELP ${key} ${description}\n# TYPE ${key} ${type}\n${key} ${value}\n`;
  const text = [...counters.map(lines('counter')), ...gauges.map(lines('gauge'))].join('');
  return [200, text, 'text/plain; version=0.0.4'];
}

// The HTTP protocol that prisma-client-py speaks to a native engine (prisma-engines, query-engine/query-engine/src/server).
import { EnginePanic } from './engine.mjs';
import { Unsettled, prismaError } from './errors.mjs';
import { log } from './log.mjs';
import { MalformedQuery } from './translate.mjs';

const TRANSACTION = /^\/transaction\/([^/]+)\/(commit|rollback)$/;
const HEARTBEAT = 10_000; // ms; the client gives up a connection that has been silent for thirty seconds
const JSON_TYPE = { 'content-type': 'application/json' };

/** Builds the request listener; `fail` is called when the process must not go on. */
export function listener(engine, translator, database, fail) {
  async function answer(request, path, client) {
    if (request.method === 'GET' && path === '/status') return [200, '{"status":"ok"}'];
    if (request.method === 'GET' && path === '/metrics') return metrics(request, engine, database);
    if (request.method !== 'POST') return [404, '{"error":"no such endpoint"}'];
    if (path === '/') return [200, await query(await json(request), request.headers['x-transaction-id'])];
    if (path === '/transaction/start') return transaction(await engine.start(await json(request), client));
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

  return async (request, response) => {
    const path = request.url.split('?', 1)[0];
    // "102 Processing": a transaction may wait long, for a database to come back or for the outcome of its COMMIT.
    const beat = path.startsWith('/transaction/') && setInterval(() => response.writeProcessing(), HEARTBEAT);
    try {
      const [status, body, headers] = await answer(request, path, clientOf(request));
      response.writeHead(status, { ...JSON_TYPE, ...headers }).end(body);
    } catch (error) {
      if (error instanceof Unsettled) {
        request.socket.resetAndDestroy(); // the client sees a broken connection: it knows that it does not know
        return;
      }
      if (error instanceof MalformedQuery || error instanceof SyntaxError) {
        const errors = [prismaError('P2009', `Failed to validate the query: ${error.message}`)];
        response.writeHead(200, JSON_TYPE).end(JSON.stringify({ errors }));
        return;
      }
      log('error', 'a query failed inside the engine', { reason: error.stack ?? String(error) });
      response.writeHead(500, { ...JSON_TYPE, connection: 'close' }).end(JSON.stringify(prismaError('P2037', 'The query engine failed')));
      if (error instanceof EnginePanic) fail(error);
    } finally {
      clearInterval(beat);
    }
  };
}

// A client is there as long as the port that it asked by; its connections come and go.
function clientOf({ socket }) {
  return { isHere: () => socket.server.listening };
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

async function json(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks).toString('utf8'));
}

// Names as Prisma's own: https://www.prisma.io/docs/orm/prisma-client/observability-and-logging/metrics
function metrics(request, engine, database) {
  const { open, idle, waiting } = database.load;
  const counters = [['prisma_client_queries_total', 'Total number of Prisma Client queries executed', engine.queries]];
  const gauges = [
    ['prisma_client_queries_active', 'Number of currently active Prisma Client queries', engine.active],
    ['prisma_client_queries_wait', 'Number of queries waiting for a database connection', waiting],
    ['prisma_pool_connections_open', 'Number of open connections', open],
    ['prisma_pool_connections_busy', 'Number of busy connections', open - idle],
    ['prisma_pool_connections_idle', 'Number of idle connections', idle],
  ];
  if (new URLSearchParams(request.url.split('?')[1]).get('format') === 'json') {
    const shape = ([key, description, value]) => ({ key, labels: {}, value, description });
    return [200, JSON.stringify({ counters: counters.map(shape), gauges: gauges.map(shape), histograms: [] })];
  }
  const lines = (type) => ([key, description, value]) => `# HELP ${key} ${description}\n# TYPE ${key} ${type}\n${key} ${value}\n`;
  const text = [...counters.map(lines('counter')), ...gauges.map(lines('gauge'))].join('');
  return [200, text, { 'content-type': 'text/plain; version=0.0.4' }];
}

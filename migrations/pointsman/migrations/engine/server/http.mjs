// The HTTP side: requests come from prisma-client-py, answers from the engine's process by way of the relay.
import { UNKNOWN } from './relay.mjs';

const HEARTBEAT = 10_000; // ms; the client gives up a connection that has been silent for thirty seconds
const JSON_TYPE = 'application/json';

/** Builds the request listener. */
export function listener(relay) {
  return async (request, response) => {
    const { method, url, socket } = request;
    if (method === 'GET' && url.startsWith('/status')) {
      response.writeHead(200, { 'content-type': JSON_TYPE }).end('{"status":"ok"}');
      return;
    }
    // "102 Processing": a transaction may wait long, for a database to come back or for the outcome of its COMMIT.
    const beat = url.startsWith('/transaction/') && setInterval(() => response.writeProcessing(), HEARTBEAT);
    // A client is there as long as the port that it asked by; its connections come and go.
    const client = { isHere: () => socket.server.listening };
    try {
      const asked = { method, url, body: await text(request), id: request.headers['x-transaction-id'] };
      const answer = await relay.ask(asked, client);
      if (answer === UNKNOWN) socket.resetAndDestroy(); // the client sees a broken connection: it knows that it does not know
      else response.writeHead(answer.status, { 'content-type': answer.type ?? JSON_TYPE }).end(answer.body);
    } catch {
      socket.resetAndDestroy(); // the client went while it sent
    } finally {
      clearInterval(beat);
    }
  };
}

async function text(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString('utf8');
}

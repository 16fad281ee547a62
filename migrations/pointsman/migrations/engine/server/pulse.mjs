// Finds out that a server hangs: it is there, but says nothing (stopped, frozen, swallowed by the network). TCP alone would notice
// after a quarter of an hour. While a statement is silent, its server is asked now and then, on a connection of its own, whether
// it does TLS: https://www.postgresql.org/docs/current/protocol-message-formats.html (SSLRequest). Every server and pooler answers
// that at once, before anybody logs in, so it takes no connection slot and a statement that is merely slow is left alone.
import { connect } from 'node:net';

const QUIET = 3000; // ms of silence before the server is asked, and between two such questions
const ANSWER = 2000; // ms that it may take to answer
const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]);

/** The result of `work()`, a statement on `client`; the connection is broken when its server turns out to hang. */
export async function watched(client, work) {
  let timer;
  const look = async () => {
    timer = undefined;
    const alive = await answers(client);
    if (done) return;
    if (alive) timer = setTimeout(look, QUIET);
    else client.connection.stream.destroy(new Error('connection terminated: the server does not answer'));
  };
  let done = false;
  timer = setTimeout(look, QUIET);
  try {
    return await work();
  } finally {
    done = true;
    clearTimeout(timer);
  }
}

function answers({ host, port }) {
  return new Promise((resolve) => {
    const socket = host.startsWith('/') ? connect(`${host}/.s.PGSQL.${port}`) : connect(port, host);
    const finish = (alive) => {
      socket.destroy();
      resolve(alive);
    };
    socket.setTimeout(ANSWER, () => finish(false));
    socket.on('error', () => finish(false));
    socket.on('close', () => finish(false));
    socket.on('data', () => finish(true));
    socket.on('connect', () => socket.write(SSL_REQUEST));
  });
}

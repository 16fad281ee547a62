// Opens one connection: the hosts of the URL in turn, with and without TLS as sslmode says, to a server of the wanted kind.
// The rules are libpq's: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS .
import { pg } from './deps.mjs';
import { log } from './log.mjs';
import { passwordFrom } from './passfile.mjs';
import { TlsContexts, attempts } from './tls.mjs';

const KIND = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'";
const STARTING = '57P03'; // the server takes no connections yet: another host may
const NOT_ALLOWED = '28000'; // e.g. pg_hba.conf refuses this client without, or with, TLS

/** Opens connections to the database of a URL; see `parseUrl`. */
export class Connector {
  #options;
  #tls;
  #last;

  constructor(options) {
    this.#options = options;
    this.#tls = new TlsContexts(options.tls);
    if (options.tls.mode !== 'disable') this.#tls.options(''); // a file that is missing now is told at the start
  }

  /**
   * @returns {Promise<object>} a connected `pg` client
   * @throws what the hosts said; `whileConnecting` is set
   */
  async open() {
    const { session, shuffle } = this.#options;
    const hosts = shuffle ? shuffled(this.#options.hosts) : this.#options.hosts;
    const wanted = session === 'prefer-standby' ? ['standby', 'any'] : [session];
    const failures = [];
    for (const kind of wanted) {
      for (const host of hosts) {
        try {
          return this.#note(host, await this.#suitable(host, kind));
        } catch (error) {
          error.whileConnecting = true;
          failures.push(error);
          if (error.severity && error.code !== STARTING && !error.wrongKind) throw error; // it answered; another would say the same
        }
      }
    }
    if (failures.length === 1) throw failures[0];
    const said = failures.map(({ message, errors }) => message || errors?.map((error) => error.message).join(', '));
    throw Object.assign(new Error(said.join('; ')), { whileConnecting: true });
  }

  #note(host, client) {
    const now = `${host.hostaddr ?? host.host}:${host.port}`;
    const before = this.#last;
    if (before !== undefined && before !== now) log('warning', 'the database is on another host now', { host: now, before });
    this.#last = now;
    return client;
  }

  async #suitable(host, kind) {
    const client = await this.#encrypted(host);
    if (kind === 'any') return client;
    const query_timeout = this.#options.client.connectionTimeoutMillis || undefined; // of a server that says nothing any more
    try {
      const [standby, readOnly] = (await client.query({ text: KIND, rowMode: 'array', query_timeout })).rows[0];
      const fits = { 'read-write': !readOnly, 'read-only': readOnly, primary: !standby, standby }[kind];
      if (fits) return client;
    } catch (error) {
      await client.end();
      throw error;
    }
    await client.end();
    throw Object.assign(new Error(`${host.host}:${host.port} is not ${kind}`), { wrongKind: true });
  }

  async #encrypted(host) {
    const ways = attempts(this.#options.tls, host.host);
    let first;
    for (const encrypted of ways) {
      try {
        return await this.#connected(host, encrypted);
      } catch (error) {
        first ??= error;
        const unreachable = error.code === 'ECONNREFUSED' || error.code === 'ENOTFOUND' || error.message === 'timeout expired';
        if (unreachable || (error.severity && error.code !== NOT_ALLOWED)) throw error; // would be no better the other way
      }
    }
    throw first;
  }

  async #connected({ host, hostaddr, port }, encrypted) {
    const { client: config, channelBinding, methods, startup, passfile } = this.#options;
    if (channelBinding === 'require' && !encrypted) throw new Error('channel binding is required, and the connection has no TLS');
    const Client = clientClass(startup);
    const { database, user } = config;
    const client = new Client({
      ...config,
      host: hostaddr ?? host,
      port,
      ssl: encrypted ? tlsOf(this.#tls, host, hostaddr) : false,
      sslnegotiation: encrypted ? config.sslnegotiation : undefined,
      enableChannelBinding: encrypted && channelBinding !== 'disable',
      password: () => config.password ?? passwordFrom(passfile, { host, port, database, user }) ?? noPassword(),
    });
    client.on('error', () => {}); // of an idle connection; whoever uses it is told by the query
    guard(client.connection, methods, channelBinding);
    try {
      await client.connect();
    } catch (error) {
      client.connection.stream.destroy();
      throw error;
    }
    return client;
  }
}

/** Ask the server to give up what a connection is doing; best effort, on a connection of its own as the protocol has it. */
export function cancel(client) {
  const { Connection } = pg;
  const { host, port, processID, secretKey } = client;
  if (!processID) return;
  const connection = new Connection({});
  connection.on('error', () => {});
  connection.on('connect', () => {
    connection.cancel(processID, secretKey);
    connection.stream.end();
  });
  connection.stream.setTimeout(1000, () => connection.stream.destroy());
  if (host.startsWith('/')) connection.connect(`${host}/.s.PGSQL.${port}`);
  else connection.connect(port, host);
}

function tlsOf(contexts, host, hostaddr) {
  const options = contexts.options(host);
  return hostaddr ? { ...options, servername: host } : options;
}

function clientClass(startup) {
  return class extends pg.Client {
    getStartupConf() {
      return { ...super.getStartupConf(), ...startup };
    }
  };
}

const ASKED = {
  authenticationCleartextPassword: () => 'password',
  authenticationMD5Password: () => 'md5',
  authenticationSASL: ({ mechanisms }) => (mechanisms.includes('SCRAM-SHA-256-PLUS') ? 'bound' : 'scram-sha-256'),
};

// require_auth and channel_binding=require: refuse before a password is sent.
function guard(connection, methods, channelBinding) {
  if (!methods && channelBinding !== 'require') return;
  let asked = 'none';
  const refuse = (what) => connection.stream.destroy(new Error(what));
  const check = () => {
    if (channelBinding === 'require' && asked !== 'bound') refuse('channel binding is required, and the server does not offer it');
    const name = asked === 'bound' ? 'scram-sha-256' : asked;
    if (methods && methods.names.includes(name) === methods.negated) refuse(`the server asked for ${name}, which require_auth excludes`);
  };
  for (const [event, method] of Object.entries(ASKED)) {
    connection.prependListener(event, (message) => {
      asked = method(message);
      check();
    });
  }
  connection.once('authenticationOk', check);
}

function noPassword() {
  throw Object.assign(new Error('no password supplied'), { code: '28P01', severity: 'FATAL' });
}

function shuffled(values) {
  return values
    .map((value) => [Math.random(), value])
    .sort(([one], [two]) => one - two)
    .map(([, value]) => value);
}

// A database URL in Prisma's dialect -> what connect.mjs, tls.mjs and pool.mjs need.
// https://www.prisma.io/docs/orm/overview/databases/postgresql#arguments ; libpq's own names are accepted beside Prisma's, and mean
// what they mean to libpq: https://www.postgresql.org/docs/current/libpq-connect.html . core/pointsman/database_url.py reads the
// same URL for the connections that do not go through this engine; tests/connections holds the two together.
import { availableParallelism } from 'node:os';
import { readTls } from './tls.mjs';

/** The URL is missing or cannot be read; never quotes it, because of the password. */
export class BadUrl extends Error {}

const SESSIONS = ['any', 'read-write', 'read-only', 'primary', 'standby', 'prefer-standby'];
// What would be a hole if it were passed over in silence, and this driver cannot do.
const UNSUPPORTED = ['requirepeer', 'sslcrldir', 'sslcertmode', 'service', 'krbsrvname'];
const SHAPE = /^(\w[\w+.-]*):\/\/(?:(.*?)@(?=[^@/]*(?:[/?]|$)))?([^/?#]*)(?:\/([^?#]*))?(?:\?([^#]*))?$/s;

/**
 * @param {string} text postgresql://user:password@host:port,host:port/database?parameters
 * @returns {{pool: object, client: object, hosts: {host: string, hostaddr?: string, port: number}[], tls: object, schema: string,
 *   startup: object, session: string, shuffle: boolean, channelBinding: string, methods?: object, passfile?: string,
 *   where: string, database: string, user: string, poolTimeout: number, statements: number}} times in milliseconds, 0 is for ever
 */
export function parseUrl(text) {
  const found = SHAPE.exec(text);
  if (!found) throw new BadUrl('the database URL is malformed');
  const [, scheme, userinfo = '', authority, path = '', query = ''] = found;
  if (!['postgresql', 'postgres'].includes(scheme)) throw new BadUrl('the database URL is not postgresql://');
  const parameters = new URLSearchParams(Object.fromEntries(new URLSearchParams(query))); // of several of a name, the last
  for (const name of UNSUPPORTED) {
    if (parameters.get(name)) throw new BadUrl(`${name} in the database URL is not supported`);
  }
  const seconds = (name, byDefault) => whole(parameters, name, byDefault) * 1000;
  const [, name, password] = /^([^:]*)(?::(.*))?$/s.exec(userinfo);
  const hosts = hostsOf(authority, parameters);
  const poolTimeout = seconds('pool_timeout', 10);
  const schema = parameters.get('schema') || 'public';
  const user = decoded(name) || parameters.get('user') || undefined;
  const database = parameters.get('dbname') || decoded(path) || user;
  return {
    schema,
    poolTimeout,
    hosts,
    where: hosts.map(({ host, port }) => `${host.includes(':') ? `[${host}]` : host}:${port}`).join(','),
    database,
    user,
    tls: guarded(() => readTls(parameters)),
    session: oneOf(parameters, 'target_session_attrs', SESSIONS, hosts.length > 1 ? 'read-write' : 'any'),
    shuffle: oneOf(parameters, 'load_balance_hosts', ['disable', 'random'], 'disable') === 'random',
    channelBinding: oneOf(parameters, 'channel_binding', ['disable', 'prefer', 'require'], 'prefer'),
    methods: methodsOf(parameters.get('require_auth')),
    passfile: parameters.get('passfile') || undefined,
    statements: parameters.get('pgbouncer') === 'true' ? 0 : whole(parameters, 'statement_cache_size', 100),
    pool: {
      max: whole(parameters, 'connection_limit', availableParallelism() * 2 + 1) || 1,
      idle: seconds('max_idle_connection_lifetime', 300),
      lifetime: seconds('max_connection_lifetime', 0),
    },
    client: {
      user,
      password: decoded(password ?? '') || parameters.get('password') || undefined,
      database,
      application_name: parameters.get('application_name') || 'pointsman-engine',
      options: parameters.get('options') || undefined,
      sslnegotiation: oneOf(parameters, 'sslnegotiation', ['postgres', 'direct'], 'postgres'),
      connectionTimeoutMillis: seconds('connect_timeout', 5),
      query_timeout: seconds('socket_timeout', 0) || undefined,
      keepAlive: parameters.get('keepalives') !== '0',
      keepAliveInitialDelayMillis: seconds('keepalives_idle', 0),
    },
    // Sent with the connection's first message. A pooler in between passes the time zone on, but not the search path.
    startup: {
      TimeZone: 'UTC',
      ...(schema !== 'public' && parameters.get('pgbouncer') !== 'true' && { search_path: `"${schema.replaceAll('"', '""')}"` }),
    },
  };
}

// As in libpq, `host`, `hostaddr` and `port` take lists; one port is for all hosts.
function hostsOf(authority, parameters) {
  const named = authority.split(',').map((part) => {
    const [, bracketed, plain, port] = /^(?:\[([^\]]*)\]|([^:[\]]*))(?::(\d*))?$/.exec(part) ?? bad('host');
    return { host: bracketed ?? decoded(plain), port: port ?? '' };
  });
  const list = (name) => (parameters.get(name) ? parameters.get(name).split(',') : []);
  const addresses = list('hostaddr');
  let hosts = list('host');
  if (!hosts.length && named.some(({ host }) => host)) hosts = named.map(({ host }) => host);
  if (!hosts.length) hosts = Array(Math.max(1, addresses.length, named.length > 1 ? named.length : 0)).fill('');
  const ports = parameters.get('port') ? list('port') : named.map(({ port }) => port);
  if (![1, hosts.length].includes(ports.length)) bad('port');
  if (![0, hosts.length].includes(addresses.length)) bad('hostaddr');
  return hosts.map((name, index) => {
    const port = Number(ports[ports.length > 1 ? index : 0] || 5432);
    if (!Number.isInteger(port) || port < 1 || port > 65535) bad('port');
    const hostaddr = addresses[index];
    return { host: name || hostaddr || 'localhost', port, ...(hostaddr && { hostaddr }) };
  });
}

// require_auth: `scram-sha-256,md5`, or `!password`: what the server may ask for.
function methodsOf(text) {
  if (!text) return undefined;
  const names = text.split(',').map((name) => name.trim());
  const negated = names[0].startsWith('!');
  const known = ['password', 'md5', 'scram-sha-256', 'none'];
  const plain = names.map((name) => (name.startsWith('!') ? name.slice(1) : name));
  if (names.some((name) => name.startsWith('!') !== negated)) bad('require_auth');
  if (!negated && !plain.some((name) => known.includes(name))) bad('require_auth');
  return { negated, names: plain };
}

function whole(parameters, name, byDefault) {
  const text = parameters.get(name);
  if (text === null || text === '') return byDefault;
  const number = Number(text);
  if (!Number.isInteger(number) || number < 0) throw new BadUrl(`${name} in the database URL is not a whole number`);
  return number;
}

function oneOf(parameters, name, values, byDefault) {
  const value = parameters.get(name) || byDefault;
  return values.includes(value) ? value : bad(name);
}

function bad(what) {
  throw new BadUrl(`${what} in the database URL cannot be understood`);
}

const decoded = (text) => guarded(() => decodeURIComponent(text));

function guarded(work) {
  try {
    return work();
  } catch (error) {
    throw new BadUrl(error instanceof URIError ? 'the database URL is malformed: a percent sign that encodes nothing' : error.message);
  }
}

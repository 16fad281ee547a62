// A database URL in Prisma's dialect -> options for the `pg` driver.
// https://www.prisma.io/docs/orm/overview/databases/postgresql#arguments ; libpq's own names are accepted beside Prisma's.
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';

/** The URL is missing or cannot be read; never quotes it, because of the password. */
export class BadUrl extends Error {}

/**
 * @param {string} text postgresql://user:password@host:port/database?parameters
 * @returns {{pool: object, client: object, schema: string, startup: object, where: string, database: string, user: string,
 *   preferTls: boolean, poolTimeout: number}} times in milliseconds, 0 is for ever
 */
export function parseUrl(text) {
  let url;
  try {
    url = new URL(text);
  } catch {
    throw new BadUrl('the database URL is malformed');
  }
  if (!['postgresql:', 'postgres:'].includes(url.protocol)) throw new BadUrl('the database URL is not postgresql://');
  const parameters = url.searchParams;
  const seconds = (name, byDefault) => whole(parameters, name, byDefault) * 1000;
  const host = parameters.get('host') || decodeURIComponent(url.hostname).replace(/^\[(.*)\]$/, '$1') || 'localhost';
  const port = Number(parameters.get('port') || url.port || 5432);
  const poolTimeout = seconds('pool_timeout', 10);
  const schema = parameters.get('schema') || 'public';
  const user = decodeURIComponent(url.username) || parameters.get('user') || undefined;
  const database = decodeURIComponent(url.pathname.slice(1)) || user;
  const tls = tlsOptions(parameters, host);
  return {
    schema,
    poolTimeout,
    where: `${host}:${port}`,
    database,
    user,
    preferTls: tls.prefer,
    pool: {
      max: whole(parameters, 'connection_limit', availableParallelism() * 2 + 1) || 1,
      connectionTimeoutMillis: poolTimeout,
      idleTimeoutMillis: seconds('max_idle_connection_lifetime', 300),
      maxLifetimeSeconds: whole(parameters, 'max_connection_lifetime', 0),
    },
    client: {
      host,
      port,
      user,
      password: decodeURIComponent(url.password) || parameters.get('password') || undefined,
      database,
      ssl: tls.ssl,
      application_name: parameters.get('application_name') || 'pointsman-engine',
      options: parameters.get('options') || undefined,
      connectionTimeoutMillis: seconds('connect_timeout', 5),
      query_timeout: seconds('socket_timeout', 0) || undefined,
      keepAlive: true,
    },
    // Sent with the connection's first message. A pooler in between passes the time zone on, but not the search path.
    startup: {
      TimeZone: 'UTC',
      ...(schema !== 'public' && parameters.get('pgbouncer') !== 'true' && { search_path: `"${schema.replaceAll('"', '""')}"` }),
    },
  };
}

function whole(parameters, name, byDefault) {
  const text = parameters.get(name);
  if (text === null || text === '') return byDefault;
  const number = Number(text);
  if (!Number.isInteger(number) || number < 0) throw new BadUrl(`${name} in the database URL is not a whole number`);
  return number;
}

// Prisma: sslmode disable | prefer (its default) | require; certificates are checked only with sslaccept=strict.
// libpq adds verify-ca and verify-full, which check always.
function tlsOptions(parameters, host) {
  const mode = parameters.get('sslmode') || 'prefer';
  if (mode === 'disable' || host.startsWith('/')) return { ssl: false, prefer: false };
  if (!['allow', 'prefer', 'require', 'verify-ca', 'verify-full'].includes(mode)) {
    throw new BadUrl('sslmode in the database URL is unknown');
  }
  const identity = parameters.get('sslidentity');
  const key = parameters.get('sslkey');
  const authority = parameters.get('sslrootcert') || (key ? null : parameters.get('sslcert'));
  const ssl = { rejectUnauthorized: mode.startsWith('verify-') || parameters.get('sslaccept') === 'strict' };
  if (authority && authority !== 'system') ssl.ca = readFileSync(authority);
  if (identity) Object.assign(ssl, { pfx: readFileSync(identity), passphrase: parameters.get('sslpassword') ?? undefined });
  if (key) Object.assign(ssl, { key: readFileSync(key), cert: readFileSync(parameters.get('sslcert')) });
  if (mode === 'verify-ca') ssl.checkServerIdentity = () => undefined;
  return { ssl, prefer: mode === 'prefer' || mode === 'allow' };
}

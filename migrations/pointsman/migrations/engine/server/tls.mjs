// What a database URL says about TLS -> options for Node's tls.connect.
//
// Two dialects. libpq: sslmode disable | allow | prefer | require | verify-ca | verify-full, sslrootcert, sslcert with sslkey. Prisma:
// sslmode disable | prefer | require, certificates checked only with sslaccept=strict, sslcert is the *authority's*, sslidentity is
// PKCS#12. `sslaccept=strict`, and an authority without an sslmode, mean verify-full: whoever names an authority wants it asked.
import { existsSync, readFileSync, statSync } from 'node:fs';
import { createSecureContext } from 'node:tls';

const MODES = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'];
const VERSIONS = ['TLSv1', 'TLSv1.1', 'TLSv1.2', 'TLSv1.3'];
const BUNDLES = ['/etc/ssl/certs/ca-certificates.crt', '/etc/pki/tls/certs/ca-bundle.crt', '/etc/ssl/ca-bundle.pem', '/etc/ssl/cert.pem'];

/**
 * @param {URLSearchParams} parameters of the URL
 * @returns {{mode: string, authority?: string, certificate?: string, key?: string, identity?: string, password?: string,
 *   revoked?: string, minVersion: string, maxVersion?: string}} paths; the files are read when a connection is opened
 */
export function readTls(parameters) {
  const get = (name) => parameters.get(name) || undefined;
  const key = get('sslkey');
  const strict = get('sslaccept') === 'strict';
  let authority = get('sslrootcert');
  let mode = get('sslmode') ?? (authority ? 'verify-full' : 'prefer');
  if (!MODES.includes(mode)) throw new Error('sslmode in the database URL is unknown');
  if (strict && mode !== 'disable') {
    mode = 'verify-full';
    authority ??= key ? undefined : get('sslcert');
  }
  if (authority === 'system' && mode !== 'verify-full') throw new Error('sslrootcert=system in the database URL wants sslmode=verify-full');
  if (mode === 'verify-ca' && !authority) throw new Error('sslmode=verify-ca in the database URL wants sslrootcert');
  if (mode === 'verify-full') authority ??= 'system';
  for (const name of ['ssl_min_protocol_version', 'ssl_max_protocol_version']) {
    if (get(name) && !VERSIONS.includes(get(name))) throw new Error(`${name} in the database URL is unknown`);
  }
  return {
    mode,
    authority,
    certificate: key && get('sslcert'),
    key,
    identity: get('sslidentity'),
    password: get('sslpassword'),
    revoked: get('sslcrl'),
    minVersion: get('ssl_min_protocol_version') ?? 'TLSv1.2',
    maxVersion: get('ssl_max_protocol_version'),
  };
}

/** Whether to try with TLS (true) and without, in order, for a host; a Unix socket has no TLS. */
export function attempts({ mode }, host) {
  if (mode === 'disable' || host.startsWith('/')) return [false];
  return { allow: [false, true], prefer: [true, false] }[mode] ?? [true];
}

/** Makes the options of a TLS connection; files that changed are read again, so a renewed certificate needs no restart. */
export class TlsContexts {
  #tls;
  #signature;
  #context;

  constructor(tls) {
    this.#tls = tls;
  }

  /** Options for `tls.connect`. Throws what the file system says of a file that cannot be read. */
  options(host) {
    const { mode, authority } = this.#tls;
    return {
      secureContext: this.#current(),
      host, // for a host name given beside an address (hostaddr)
      // libpq: an authority that is there is asked, whatever the mode; the host's name counts with verify-full only.
      rejectUnauthorized: authority !== undefined,
      ...(mode !== 'verify-full' && { checkServerIdentity: () => undefined }),
    };
  }

  #current() {
    const { authority, certificate, key, identity, revoked } = this.#tls;
    const bundle = authority === 'system' ? systemBundle() : authority;
    const files = [bundle, certificate, key, identity, revoked];
    const signature = files.map((file) => file && `${statSync(file).mtimeMs}:${statSync(file).size}`).join('|');
    if (signature !== this.#signature) {
      const read = (file) => (file ? readFileSync(file) : undefined);
      const { password, minVersion, maxVersion } = this.#tls;
      this.#context = createSecureContext({
        ca: read(bundle),
        cert: read(certificate),
        key: read(key),
        pfx: read(identity),
        crl: read(revoked),
        passphrase: password,
        minVersion,
        maxVersion,
      });
      this.#signature = signature;
    }
    return this.#context;
  }
}

// undefined: the authorities that Node brings.
const systemBundle = () => [process.env.SSL_CERT_FILE, ...BUNDLES].find((file) => file && existsSync(file));

// Passwords from a file in libpq's format, read anew for each connection: `host:port:database:user:password`, `*` for any, `\` before
// a colon or backslash. https://www.postgresql.org/docs/current/libpq-pgpass.html . The supervisor keeps one fresh where passwords
// change (database tokens, rotated secrets).
import { readFileSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

/**
 * @param {string} [file] by default `~/.pgpass`
 * @param {{host: string, port: number, database?: string, user?: string}} wanted
 * @returns {string | undefined} the first line's password that fits
 */
export function passwordFrom(file, { host, port, database, user }) {
  let text;
  try {
    const path = file ?? join(homedir(), '.pgpass');
    if (statSync(path).mode & 0o077) return undefined; // as libpq: a file that others may read is not used
    text = readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
  const wanted = [host, String(port), database, user];
  for (const line of text.split('\n')) {
    const fields = line.match(/(?:\\.|[^:\\])*(?::|$)/g)?.map((field) => field.replace(/:$/, '')) ?? [];
    if (line.startsWith('#') || fields.length < 5) continue;
    if (wanted.every((value, index) => fields[index] === '*' || plain(fields[index]) === value)) return plain(fields[4]);
  }
  return undefined;
}

const plain = (field) => field.replace(/\\(.)/g, '$1');

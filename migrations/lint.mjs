// Lint for the engine's JavaScript, without a dependency: `node migrations/lint.mjs`. Syntax by Node itself; the rest is what
// matters here: unused imports and names, loose equality, stray output (stdout is the engine's log channel), long lines and files.
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const FOLDERS = ['./', './pointsman/migrations/engine/server/', '../tests/engine/'];
const MOST_COLUMNS = 140;
const MOST_LINES = 400;
const SERVER = /engine\/server\/(?!log\.mjs)/;

const RULES = [
  [/\t|[ \t]+$/, 'tab or trailing space'],
  [/[^=!]==[^=]|!=[^=]/, 'use === or !=='],
  [/^\s*var\s/, 'use const or let'],
  [/\bdebugger\b/, 'left-over debugger'],
];

function problemsOf(file) {
  const found = [];
  const text = readFileSync(file, 'utf8');
  const lines = text.split('\n');
  const syntax = spawnSync(process.execPath, ['--check', file], { encoding: 'utf8' });
  if (syntax.status !== 0) found.push([1, syntax.stderr.trim().split('\n').at(-3) ?? 'syntax error']);
  if (lines.length > MOST_LINES) found.push([MOST_LINES, `more than ${MOST_LINES} lines`]);
  if (!text.endsWith('\n') || text.endsWith('\n\n')) found.push([lines.length, 'must end in one newline']);
  lines.forEach((line, index) => {
    const code = line.replace(/'(?:[^'\\]|\\.)*'|\/(?:[^/\\\n]|\\.)+\/[a-z]*|`[^`]*`|\/\/.*$/g, '""');
    for (const [pattern, message] of RULES) if (pattern.test(code)) found.push([index + 1, message]);
    if (line.length > MOST_COLUMNS) found.push([index + 1, `longer than ${MOST_COLUMNS} columns`]);
    if (SERVER.test(file) && /\bconsole\.|process\.stdout/.test(code)) found.push([index + 1, 'only log.mjs may print']);
  });
  for (const name of bound(text)) {
    if (text.match(new RegExp(`(?<![\\w$]|(?<!\\.\\.)\\.)${name.replace('$', '\\$')}(?![\\w$])`, 'g')).length < 2) {
      found.push([lines.findIndex((line) => line.includes(name)) + 1, `${name} is never used`]);
    }
  }
  return found;
}

// Names bound by imports and by top-level declarations that are not exported.
function* bound(text) {
  for (const [, names] of text.matchAll(/^import \{([^}]*)\}/gm)) {
    for (const name of names.split(',')) if (name.trim()) yield name.trim().split(/\s+as\s+/).at(-1);
  }
  for (const [, name] of text.matchAll(/^(?:async )?(?:const|let|function\*?|class) (\w+)/gm)) yield name;
}

let count = 0;
for (const folder of FOLDERS) {
  const directory = fileURLToPath(new URL(folder, import.meta.url));
  for (const name of readdirSync(directory).filter((entry) => entry.endsWith('.mjs')).sort()) {
    for (const [line, message] of problemsOf(directory + name)) {
      process.stdout.write(`${directory}${name}:${line}: ${message}\n`);
      count += 1;
    }
  }
}
process.exitCode = count ? 1 : 0;

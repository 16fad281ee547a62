// The engine's answers -> what prisma-client-py 0.11 reads. Done on the text, so that numbers keep every digit and large
// results are not parsed twice. A quote inside a string is always escaped in JSON, so an unescaped `{"$type":` is the engine's own.

const TYPED = '{"$type":"';

/** `{"data":{"findManyX":...}}` -> `{"data":{"result":...}}`, with typed values unwrapped and raw rows reshaped. */
export function reshape(answer, action) {
  if (answer.startsWith('{"errors":')) return answer;
  if (action === undefined) return reshapeBatch(answer);
  const start = answer.indexOf(':', '{"data":{"'.length) + 1;
  const value = answer.slice(start, -2);
  return `{"data":{"result":${action === 'queryRaw' ? rawRows(value) : unwrap(value)}}}`;
}

// Failures inside a batch come one level down, where the client does not look: lift the first one.
function reshapeBatch(answer) {
  if (answer.includes('{"errors":')) {
    const failed = JSON.parse(answer).batchResult?.find((result) => result.errors);
    if (failed) return JSON.stringify({ errors: failed.errors });
  }
  return unwrap(answer);
}

/** Typed values of the JSON protocol -> the plain ones of the GraphQL protocol: big integers as numbers, the rest as strings. */
export function unwrap(text) {
  let at = text.indexOf(TYPED);
  if (at < 0) return text;
  const parts = [];
  let done = 0;
  while (at >= 0) {
    const type = text.slice(at + TYPED.length, text.indexOf('"', at + TYPED.length));
    const value = at + TYPED.length + type.length + '","value":'.length;
    const end = skip(text, value);
    parts.push(text.slice(done, at), type === 'BigInt' ? text.slice(value + 1, end - 1) : text.slice(value, end));
    done = end + 1;
    at = text.indexOf(TYPED, done);
  }
  parts.push(text.slice(done));
  return parts.join('');
}

/** `{columns, types, rows}` of engine 5.17 -> `[{column: {prisma__type, prisma__value}}]` of the engines that 0.11 was made for. */
export function rawRows(text) {
  const at = text.indexOf('"rows":') + '"rows":'.length;
  const { columns, types } = JSON.parse(`${text.slice(0, at)}null}`);
  const keys = columns.map((column) => JSON.stringify(column));
  const rows = elements(text, at).map(
    (row) => `{${elements(row, 0).map((value, i) => `${keys[i]}:${rawValue(types[i], value)}`).join(',')}}`,
  );
  return `[${rows.join(',')}]`;
}

function rawValue(type, value) {
  if (value === 'null') return '{"prisma__type":"null","prisma__value":null}';
  if (type.endsWith('-array')) {
    const items = elements(value, 0).map((item) => rawValue(type.slice(0, -'-array'.length), item));
    return `{"prisma__type":"array","prisma__value":[${items.join(',')}]}`;
  }
  return `{"prisma__type":"${type}","prisma__value":${value}}`;
}

// The texts of the elements of the JSON array at `start`.
function elements(text, start) {
  const found = [];
  let at = start + 1;
  while (text[at] !== ']') {
    const end = skip(text, at);
    found.push(text.slice(at, end));
    at = text[end] === ',' ? end + 1 : end;
  }
  return found;
}

// Index just after the JSON value at `start`. The engine writes no white space between tokens.
function skip(text, start) {
  let depth = 0;
  for (let at = start; at < text.length; at += 1) {
    const char = text[at];
    if (char === '"') {
      at = closingQuote(text, at + 1);
    } else if (char === '[' || char === '{') {
      depth += 1;
      continue;
    } else if (char === ']' || char === '}') {
      if (depth === 0) return at;
      depth -= 1;
    } else if (depth === 0 && char === ',') {
      return at;
    } else {
      continue;
    }
    if (depth === 0) return at + 1;
  }
  return text.length;
}

function closingQuote(text, from) {
  for (let at = text.indexOf('"', from); ; at = text.indexOf('"', at + 1)) {
    if (at < 0) throw new Error('the engine answered with an unfinished string');
    let slashes = 0;
    while (text[at - 1 - slashes] === '\\') slashes += 1;
    if (slashes % 2 === 0) return at;
  }
}

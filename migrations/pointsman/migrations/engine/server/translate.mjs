// prisma-client-py's GraphQL -> Prisma's JSON protocol, the only one that the WASM engine takes.
import { parse } from './deps.mjs';
import { ArgumentEncoder, MalformedQuery } from './arguments.mjs';

export { MalformedQuery };

const ACTIONS = [
  'findUnique', 'findFirst', 'findMany', 'createOne', 'createMany', 'updateOne', 'updateMany', 'upsertOne', 'deleteOne',
  'deleteMany', 'aggregate', 'groupBy',
];
const THROWING = ['findUnique', 'findFirst'];

/** Translates the operations of one schema. */
export class Translator {
  #encoder;
  #operations = new Map([
    ['queryRaw', { action: 'queryRaw' }],
    ['executeRaw', { action: 'executeRaw' }],
  ]);

  /** @param models result of `parseSchema` */
  constructor(models) {
    this.#encoder = new ArgumentEncoder(models);
    for (const modelName of models.keys()) {
      for (const action of ACTIONS) this.#operations.set(`${action}${modelName}`, { modelName, action });
      for (const action of THROWING) {
        this.#operations.set(`${action}${modelName}OrThrow`, { modelName, action: `${action}OrThrow` });
      }
    }
  }

  /**
   * @param {string} text one GraphQL document with one operation on one field
   * @returns a request of the JSON protocol
   */
  translate(text) {
    const field = onlyField(text);
    const operation = this.#operations.get(field.name.value);
    if (!operation) throw new MalformedQuery(`unknown operation ${field.name.value}`);
    const model = operation.modelName ?? null;
    return {
      ...operation,
      query: {
        arguments: this.#encoder.operation(field.arguments ?? [], model),
        selection: this.#selection(field.selectionSet, model),
      },
    };
  }

  #selection(set, model) {
    const selection = {};
    for (const field of set?.selections ?? []) {
      if (field.kind !== 'Field') throw new MalformedQuery('fragments are not taken');
      const name = field.name.value;
      const related = this.#encoder.related(model, name);
      selection[name] = field.selectionSet
        ? {
            arguments: this.#encoder.operation(field.arguments ?? [], related),
            selection: this.#selection(field.selectionSet, related),
          }
        : true;
    }
    return selection;
  }
}

function onlyField(text) {
  let document;
  try {
    document = parse(unindent(text), { noLocation: true });
  } catch (error) {
    throw new MalformedQuery(`not GraphQL: ${error.message}`);
  }
  const fields = document.definitions[0]?.selectionSet?.selections ?? [];
  if (document.definitions.length !== 1 || fields.length !== 1 || fields[0].kind !== 'Field') {
    throw new MalformedQuery('a query must have exactly one operation on one field');
  }
  return fields[0];
}

const SEPARATOR = /[\x85\u2028\u2029]/;
const BLANK = /^[ \xa0\u1680\u2000-\u200a\u202f\u205f\u3000]*$/;

/**
 * The client indents its query with Python's `textwrap.indent`, for which U+0085, U+2028 and U+2029 end a line too: inside strings
 * it puts spaces after them, as many as the line has in front, except before blank rests. They are taken out again.
 */
export function unindent(text) {
  if (!SEPARATOR.test(text)) return text;
  const lines = text.split('\n').map((line) => {
    const indent = line.length - line.trimStart().length;
    const [first, ...rest] = line.split(/(?<=[\x85\u2028\u2029])/);
    return first + rest.map((part) => (BLANK.test(part.replace(SEPARATOR, '')) ? part : part.slice(indent))).join('');
  });
  return lines.join('\n');
}

// prisma-client-py's GraphQL -> Prisma's JSON protocol, the only one that the WASM engine takes.
import { parse } from './deps.mjs';
import { ArgumentEncoder } from './arguments.mjs';

const ACTIONS = [
  'findUnique', 'findFirst', 'findMany', 'createOne', 'createMany', 'updateOne', 'updateMany', 'upsertOne', 'deleteOne',
  'deleteMany', 'aggregate', 'groupBy',
];
const THROWING = ['findUnique', 'findFirst'];

/** A request that is no query of ours; its message goes back to the caller. */
export class MalformedQuery extends Error {}

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
    document = parse(text, { noLocation: true });
  } catch (error) {
    throw new MalformedQuery(`not GraphQL: ${error.message}`);
  }
  const fields = document.definitions[0]?.selectionSet?.selections ?? [];
  if (document.definitions.length !== 1 || fields.length !== 1 || fields[0].kind !== 'Field') {
    throw new MalformedQuery('a query must have exactly one operation on one field');
  }
  return fields[0];
}

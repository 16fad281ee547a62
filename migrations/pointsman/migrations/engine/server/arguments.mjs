// GraphQL argument values -> values of Prisma's JSON protocol.
//
// The two differ where JSON has no type of its own: text for a Json column must be marked, or `{}` would be stored as the
// string "{}"; integers beyond 2^53 must be marked, or they would lose digits. So the walk follows the schema through filters and
// nested writes. There are three kinds of objects on the way:
//   operation  {where, data, create, update, cursor, orderBy, ...}: keys are arguments
//   fields     keys are fields of a model, AND/OR/NOT, or the name of a compound key
//   relation   what hangs on a relation field: {create, connect, some, is, ...}, or the related model's fields directly

const OPERATION_IN_RELATION = new Set(['upsert', 'connectOrCreate', 'updateMany', 'createMany']);
const FIELDS_IN_RELATION = new Set([
  'create', 'connect', 'disconnect', 'set', 'delete', 'deleteMany', 'is', 'isNot', 'some', 'every', 'none', 'update',
]);
const FIELDS_IN_OPERATION = new Set(['where', 'data', 'create', 'update', 'cursor', 'having']);
const LOGIC = new Set(['AND', 'OR', 'NOT']);
const JSON_TEXT_KEYS = new Set([
  'equals', 'not', 'array_contains', 'array_starts_with', 'array_ends_with', 'lt', 'lte', 'gt', 'gte', 'set', 'push', // Json
  'has', 'hasEvery', 'hasSome', // Json[]
]);

const JSON_DEPTH = 127; // the engine's own limit (serde_json)

/** A request that is no query of ours; its message goes back to the caller. */
export class MalformedQuery extends Error {}

/** Encodes GraphQL values for one schema. */
export class ArgumentEncoder {
  constructor(models) {
    this.models = models;
  }

  /** Arguments of an operation on `model` (null for raw queries): a list of GraphQL argument or object-field nodes. */
  operation(nodes, model) {
    const encoded = {};
    for (const { name, value } of nodes) {
      encoded[name.value] = FIELDS_IN_OPERATION.has(name.value) ? this.#each(value, (v) => this.#fields(v, model)) : plain(value);
    }
    // The engine panics over a `having` that asks for nothing; in this form it takes it.
    if (encoded.having !== undefined && asksNothing(encoded.having)) encoded.having = { AND: [encoded.having] };
    return encoded;
  }

  /** Name of the model that `field` of `model` points to; `model` itself where it points nowhere (`_count` and the like). */
  related(model, field) {
    const known = this.models.get(model)?.get(field);
    return known?.relation ? known.type : model;
  }

  #each(value, encode) {
    return value.kind === 'ListValue' ? value.values.map(encode) : encode(value);
  }

  #fields(value, model) {
    if (value.kind !== 'ObjectValue') return plain(value);
    const known = this.models.get(model);
    const encoded = {};
    for (const { name, value: inner } of value.fields) {
      const field = known?.get(name.value);
      encoded[name.value] = field ? this.#field(inner, field) : this.#each(inner, (v) => this.#unnamed(v, model, name.value));
    }
    return encoded;
  }

  // Not a field: AND/OR/NOT, a compound key, or an aggregate of `having`; all of them hold fields of the same model.
  #unnamed(value, model, name) {
    return value.kind === 'ObjectValue' || LOGIC.has(name) ? this.#fields(value, model) : plain(value);
  }

  #field(value, field) {
    if (field.relation) return this.#each(value, (v) => this.#relation(v, field));
    if (field.type === 'Json') return this.#each(value, json);
    return plain(value, field.type);
  }

  #relation(value, field) {
    if (value.kind !== 'ObjectValue') return plain(value);
    const model = field.type;
    const known = this.models.get(model);
    const encoded = {};
    for (const node of value.fields) {
      const key = node.name.value;
      if (OPERATION_IN_RELATION.has(key) || (key === 'update' && isOperation(node.value, field, known))) {
        encoded[key] = this.#each(node.value, (v) => (v.kind === 'ObjectValue' ? this.operation(v.fields, model) : plain(v)));
      } else if (FIELDS_IN_RELATION.has(key) && !known.has(key)) {
        encoded[key] = this.#each(node.value, (v) => this.#fields(v, model));
      } else {
        Object.assign(encoded, this.#fields({ kind: 'ObjectValue', fields: [node] }, model));
      }
    }
    return encoded;
  }
}

function asksNothing(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && Object.values(value).every(asksNothing);
}

// `update` of a list relation is {where, data}; of a single one it is the data itself, or {where, data}, or {data}. Where the
// model has a column `data`, that one is text, never an object.
function isOperation(value, field, known) {
  if (field.list) return true;
  const fields = value.kind === 'ObjectValue' ? value.fields : [];
  const data = fields.find(({ name }) => name.value === 'data');
  if (data === undefined) return false;
  return data.value.kind === 'ObjectValue' || !known.has('data') || fields.some(({ name }) => name.value === 'where');
}

// A value of a Json column, or a filter on one.
function json(value) {
  switch (value.kind) {
    case 'StringValue':
      return jsonText(value.value);
    case 'ListValue':
      return value.values.map(json);
    case 'ObjectValue':
      return Object.fromEntries(
        value.fields.map(({ name, value: v }) => [name.value, JSON_TEXT_KEYS.has(name.value) ? json(v) : plain(v)]),
      );
    case 'EnumValue': // JsonNull, DbNull, AnyNull
      return { $type: 'Enum', value: value.value };
    case 'NullValue':
      return null;
    case 'Variable':
      throw new MalformedQuery('variables are not taken');
    default: // a bare number or boolean is its own JSON text
      return jsonText(String(value.value));
  }
}

// The engine panics on text that it cannot read as JSON, and takes every worker's queries down with it. Python writes NaN and
// Infinity, and escapes lone surrogates; the native engine refuses them too, as an invalid argument.
function jsonText(text) {
  let parsed;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw new MalformedQuery(`Invalid argument value: not JSON: ${error.message}`);
  }
  checkJson(parsed, 0);
  return { $type: 'Json', value: text };
}

function checkJson(value, depth) {
  if (typeof value === 'number' && !Number.isFinite(value)) {
    throw new MalformedQuery('Invalid argument value: a number in JSON is too large');
  }
  if (typeof value === 'string' && !value.isWellFormed()) {
    throw new MalformedQuery('Invalid argument value: text in JSON has half of a surrogate pair');
  }
  if (typeof value !== 'object' || value === null) return;
  if (depth >= JSON_DEPTH) throw new MalformedQuery(`Invalid argument value: JSON is nested deeper than ${JSON_DEPTH} levels`);
  if (Array.isArray(value)) {
    for (const item of value) checkJson(item, depth + 1);
    return;
  }
  for (const key in value) {
    checkJson(key, depth);
    checkJson(value[key], depth + 1);
  }
}

// Any other value; `type` is the column's, where there is one.
function plain(value, type) {
  switch (value.kind) {
    case 'IntValue':
      return integer(value.value, type);
    case 'FloatValue':
      return float(value.value);
    case 'NullValue':
      return null;
    case 'Variable':
      throw new MalformedQuery('variables are not taken');
    case 'ListValue':
      return value.values.map((v) => plain(v, type));
    case 'ObjectValue':
      return Object.fromEntries(value.fields.map(({ name, value: v }) => [name.value, plain(v, type)]));
    default: // StringValue, BooleanValue, EnumValue
      return value.value;
  }
}

function float(text) {
  const number = Number(text);
  if (!Number.isFinite(number)) throw new MalformedQuery(`Invalid argument value: ${text} is too large`); // JSON would make it null
  return number;
}

function integer(text, type) {
  const number = float(text);
  if (type !== 'BigInt' || Number.isSafeInteger(number)) return number;
  // What fits nowhere goes on as a number, which the engine refuses in its own words.
  return BigInt.asIntN(64, BigInt(text)) === BigInt(text) ? { $type: 'BigInt', value: text } : number;
}

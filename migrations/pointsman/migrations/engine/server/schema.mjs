// What the translation must know of a Prisma schema: each model's fields with their types.
// Grammar: https://www.prisma.io/docs/orm/reference/prisma-schema-reference

const BLOCK = /^(model|view|type|enum)\s+(\w+)\s*\{/;
const FIELD = /^(\w+)\s+(\w+)(\[\])?(\?)?/;

/**
 * @param {string} text a schema file
 * @returns {Map<string, Map<string, {type: string, list: boolean, relation: boolean}>>} fields by model
 */
export function parseSchema(text) {
  const models = new Map();
  let fields = null;
  for (const raw of text.split('\n')) {
    const line = raw.trim();
    const block = BLOCK.exec(line);
    if (block) {
      fields = block[1] === 'enum' ? null : new Map();
      if (fields) models.set(block[2], fields);
    } else if (line === '}') {
      fields = null;
    } else if (fields && !line.startsWith('//') && !line.startsWith('@@')) {
      const field = FIELD.exec(line);
      if (field) fields.set(field[1], { type: field[2], list: field[3] !== undefined, relation: false });
    }
  }
  for (const model of models.values()) {
    for (const field of model.values()) field.relation = models.has(field.type);
  }
  return models;
}

// node translation.test.mjs <directory that holds node_modules>
import assert from 'node:assert/strict';
import { test } from 'node:test';

const server = new URL('../../migrations/pointsman/migrations/engine/server/', import.meta.url);
const { parseSchema } = await import(new URL('schema.mjs', server));
const { Translator, MalformedQuery, unindent } = await import(new URL('translate.mjs', server));
const { rawRows, reshape, unwrap } = await import(new URL('results.mjs', server));
const { columnType, typeParsers } = await import(new URL('types.mjs', server));
const { ErrorMapper } = await import(new URL('errors.mjs', server));
const { ColumnTypeEnum } = await import(new URL('deps.mjs', server));

const models = parseSchema(`
  // model Nothing { a Int }
  model Team {
    id String @id
    data Json // a column named as an argument
    where Json?
    size BigInt
    keys Key[]
    @@index([id])
  }
  model Key {
    token String @id @map("t")
    meta Json @default("{}")
    kind Kind
    team Team? @relation(fields: [id], references: [id])
  }
  enum Kind {
    A
  }
`);
const translator = new Translator(models);
const json = (value) => ({ $type: 'Json', value });
const args = (text) => translator.translate(text).query.arguments;

test('the schema', () => {
  assert.deepEqual([...models.keys()], ['Team', 'Key']);
  assert.deepEqual(models.get('Team').get('keys'), { type: 'Key', list: true, relation: true });
  assert.deepEqual(models.get('Key').get('kind'), { type: 'Kind', list: false, relation: false });
  assert.equal(models.get('Team').size, 5);
});

test('operations', () => {
  for (const [name, modelName, action] of [
    ['findUniqueTeam', 'Team', 'findUnique'],
    ['findUniqueTeamOrThrow', 'Team', 'findUniqueOrThrow'],
    ['findFirstKeyOrThrow', 'Key', 'findFirstOrThrow'],
    ['createManyKey', 'Key', 'createMany'],
    ['groupByKey', 'Key', 'groupBy'],
  ]) {
    const request = translator.translate(`query { result: ${name} { a } }`);
    assert.deepEqual([request.modelName, request.action], [modelName, action]);
  }
  const raw = translator.translate('mutation { result: queryRaw(query: "SELECT 1", parameters: "[]") }');
  assert.deepEqual(raw, { action: 'queryRaw', query: { arguments: { query: 'SELECT 1', parameters: '[]' }, selection: {} } });
  for (const bad of [
    'query { result: findManyNothing { a } }', 'query {', 'query { a b }', '', 'query { result: findManyTeam { ... { id } } }',
    'query($a: Int) { result: findManyTeam(take: $a) { id } }', 'query($a: Int) { result: findManyTeam(where: {data: $a}) { id } }',
  ]) {
    assert.throws(() => translator.translate(bad), MalformedQuery);
  }
});

test('Json follows the schema through nested writes', () => {
  const got = args(`mutation { result: updateOneTeam(where: {id: "{}"}, data: {
    id: "{}", data: "{}", where: "[]", size: 9007199254740993,
    keys: {
      create: [{token: "{}", meta: "{}"}],
      upsert: [{where: {token: "{}"}, create: {meta: "1"}, update: {meta: "2"}}],
      update: [{where: {token: "a"}, data: {meta: "3"}}],
      updateMany: [{where: {meta: {equals: "4"}}, data: {meta: "5"}}],
      connectOrCreate: {where: {token: "b"}, create: {meta: "6"}},
      createMany: {data: [{meta: "7"}], skipDuplicates: true},
      connect: {token: "c"}
    }
  }) { id } }`);
  assert.deepEqual(got, {
    where: { id: '{}' },
    data: {
      id: '{}', data: json('{}'), where: json('[]'), size: { $type: 'BigInt', value: '9007199254740993' },
      keys: {
        create: [{ token: '{}', meta: json('{}') }],
        upsert: [{ where: { token: '{}' }, create: { meta: json('1') }, update: { meta: json('2') } }],
        update: [{ where: { token: 'a' }, data: { meta: json('3') } }],
        updateMany: [{ where: { meta: { equals: json('4') } }, data: { meta: json('5') } }],
        connectOrCreate: { where: { token: 'b' }, create: { meta: json('6') } },
        createMany: { data: [{ meta: json('7') }], skipDuplicates: true },
        connect: { token: 'c' },
      },
    },
  });
});

test('text for a Json column must be JSON that the engine can read: it panics on any other', () => {
  const key = (text) => args(`mutation { result: createOneKey(data: {meta: ${JSON.stringify(text)}}) { token } }`).data.meta;
  const nested = (depth) => '['.repeat(depth) + ']'.repeat(depth);
  for (const text of ['NaN', '{"a": Infinity}', 'x', '', '{', '1e999', '"\\ud800"', '{"\\udfff": 1}', nested(128)]) {
    assert.throws(() => key(text), MalformedQuery, text);
  }
  for (const text of [nested(127), '"\\ud83d\\ude00"', '-0.0', 'null', '{"__proto__": [1e308]}']) assert.deepEqual(key(text), json(text));
  const filter = 'query { result: findManyKey(where: {meta: {array_contains: "NaN"}}) { token } }';
  assert.throws(() => translator.translate(filter), MalformedQuery);
});

test('numbers that fit nowhere are refused, the whole ones by the engine', () => {
  for (const number of ['1e400', '9'.repeat(400)]) {
    assert.throws(() => args(`mutation { result: createOneKey(data: {kind: ${number}}) { token } }`), MalformedQuery);
  }
  const size = (text) => args(`mutation { result: createOneTeam(data: {size: ${text}}) { id } }`).data.size;
  assert.deepEqual(size('-9223372036854775808'), { $type: 'BigInt', value: '-9223372036854775808' });
  assert.equal(size('9223372036854775808'), 2 ** 63);
  assert.equal(size('9007199254740991'), Number.MAX_SAFE_INTEGER);
});

test('`update` of a single relation, whose model has a column `data`', () => {
  const direct = args('mutation { result: updateOneKey(data: {team: {update: {data: "{}"}}}) { token } }');
  assert.deepEqual(direct.data.team.update, { data: json('{}') });
  const full = args('mutation { result: updateOneKey(data: {team: {update: {where: {id: "a"}, data: {data: "{}"}}}}) { token } }');
  assert.deepEqual(full.data.team.update, { where: { id: 'a' }, data: { data: json('{}') } });
  const short = args('mutation { result: updateOneKey(data: {team: {update: {data: {data: "{}"}}}}) { token } }');
  assert.deepEqual(short.data.team.update, { data: { data: json('{}') } });
});

test('filters', () => {
  const got = args(`query { result: findManyKey(where: {
    AND: [{meta: {path: ["a"], equals: "1"}}, {NOT: {meta: {path: ["b"], string_contains: "2"}}}],
    OR: {meta: {array_contains: "[3]"}}, meta: {not: DbNull},
    team: {is: {data: {equals: "4"}}}, kind: "A"
  }, take: 5, skip: -1, orderBy: [{token: "desc"}]) { token } }`);
  assert.deepEqual(got, {
    where: {
      AND: [{ meta: { path: ['a'], equals: json('1') } }, { NOT: { meta: { path: ['b'], string_contains: '2' } } }],
      OR: { meta: { array_contains: json('[3]') } },
      meta: { not: { $type: 'Enum', value: 'DbNull' } },
      team: { is: { data: { equals: json('4') } } },
      kind: 'A',
    },
    take: 5, skip: -1, orderBy: [{ token: 'desc' }],
  });
  const direct = args('query { result: findManyKey(where: {team: {data: {equals: "1"}, size: {gt: 5}}}) { token } }');
  assert.deepEqual(direct.where, { team: { data: { equals: json('1') }, size: { gt: 5 } } });
});

test('selections', () => {
  const { selection } = translator.translate(`query { result: findManyTeam {
    id keys(where: {meta: {equals: "1"}}, take: 1) { token team { data } } _count { keys } } }`).query;
  assert.deepEqual(selection, {
    id: true,
    keys: {
      arguments: { where: { meta: { equals: json('1') } }, take: 1 },
      selection: { token: true, team: { arguments: {}, selection: { data: true } } },
    },
    _count: { arguments: {}, selection: { keys: true } },
  });
});

test('indentation inside strings is taken out again', () => {
  const line = '      alias: "a\u2028      b\u2029\u2028 \u2028      \x85      c"';
  assert.equal(unindent(`{\n${line}\n}`), '{\n      alias: "a\u2028b\u2029\u2028 \u2028      \x85c"\n}');
  assert.equal(unindent('no separators'), 'no separators');
});

test('typed values are unwrapped, and only those', () => {
  const tricky = '{"$type":"BigInt","value":"7"}';
  const text = JSON.stringify({
    a: { $type: 'Json', value: tricky },
    b: { $type: 'BigInt', value: '9007199254740993' },
    c: '{"$type":"x"',
    d: { $type: 'DateTime', value: 'now' },
    e: null,
  });
  const plain = `{"a":${JSON.stringify(tricky)},"b":9007199254740993,"c":"{\\"$type\\":\\"x\\"","d":"now","e":null}`;
  assert.equal(unwrap(text), plain);
  assert.equal(unwrap('{"a":1.0}'), '{"a":1.0}');
  assert.equal(unwrap(JSON.stringify({ a: { $type: 'Json', value: 'ends with \\' } })), '{"a":"ends with \\\\"}');
});

test('answers', () => {
  assert.equal(reshape('{"data":{"findManyTeam":[{"id":"a"}]}}', 'findMany'), '{"data":{"result":[{"id":"a"}]}}');
  assert.equal(reshape('{"data":{"executeRaw":3}}', 'executeRaw'), '{"data":{"result":3}}');
  assert.equal(reshape('{"errors":[1]}', 'findMany'), '{"errors":[1]}');
  assert.equal(reshape('{"batchResult":[{"data":{"a":1}},{"errors":[{"error":"x"}]}]}'), '{"errors":[{"error":"x"}]}');
  assert.equal(reshape('{"batchResult":[{"data":{"a":"{\\"errors\\":1}"}}]}'), '{"batchResult":[{"data":{"a":"{\\"errors\\":1}"}}]}');
});

test('raw rows', () => {
  const answer = '{"columns":["a","b\\"","c"],"types":["int","json","string-array"],"rows":[[1,{"x":[1,"]"]},["q",null]],[null,[],[]]]}';
  const rows = JSON.parse(rawRows(answer));
  const nothing = { prisma__type: 'null', prisma__value: null };
  assert.deepEqual(rows, [
    {
      a: { prisma__type: 'int', prisma__value: 1 },
      'b"': { prisma__type: 'json', prisma__value: { x: [1, ']'] } },
      c: { prisma__type: 'array', prisma__value: [{ prisma__type: 'string', prisma__value: 'q' }, nothing] },
    },
    { a: nothing, 'b"': { prisma__type: 'json', prisma__value: [] }, c: { prisma__type: 'array', prisma__value: [] } },
  ]);
  assert.equal(rawRows('{"columns":[],"types":[],"rows":[]}'), '[]');
  assert.match(rawRows('{"columns":["a"],"types":["json"],"rows":[[{"n":12345678901234567890}]]}'), /12345678901234567890/);
});

test('column types', () => {
  assert.equal(columnType(19), ColumnTypeEnum.Text); // name
  assert.equal(columnType(1186), ColumnTypeEnum.Text); // interval
  assert.equal(columnType(70000), ColumnTypeEnum.Text); // an enum or extension type
  assert.equal(columnType(1185), ColumnTypeEnum.DateTimeArray);
  const parse = (oid, text) => typeParsers.getTypeParser(oid)(text);
  assert.deepEqual(parse(1185, '{"2026-01-02 03:04:05.678+00",NULL}'), ['2026-01-02 03:04:05.678', null]);
  assert.deepEqual(parse(1016, '{9007199254740993}'), ['9007199254740993']);
  assert.deepEqual(parse(17, '\\x00ff'), [0, 255]);
  assert.equal(parse(790, '-$1,234.56'), '-1234.56');
  assert.deepEqual(parse(1003, '{a,"b,c"}'), ['a', 'b,c']);
});

test('driver errors are consumed, not kept', () => {
  const registered = [{ error: Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' }) }];
  const registry = { registeredErrors: registered, consumeError: (id) => registered[id] };
  const mapper = new ErrorMapper(registry, { where: 'h:1', pool: { max: 3 }, poolTimeout: 1000, client: {} });
  const external = (id) => ({ error: 'e', user_facing_error: { error_code: 'P2036', message: 'm', meta: { id } } });
  const engine = (id) => JSON.stringify({ errors: [external(id)] });
  const [first] = JSON.parse(mapper.answer(engine(0))).errors;
  assert.equal(first.user_facing_error.error_code, 'P1001');
  assert.equal(first.user_facing_error.message, "Can't reach database server at `h:1`");
  assert.equal(registered[0], undefined);
  const [plain] = JSON.parse(mapper.answer('{"errors":[{"error":"e","user_facing_error":{"message":"m","meta":null}}]}')).errors;
  assert.deepEqual(plain.user_facing_error.meta, {});
});
